"""ControlNets from the files that people have."""
