"""ControlNet units: what is asked for, when each acts and how strongly, and its part in a model evaluation."""
