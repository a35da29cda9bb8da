"""Control images: how a ControlNet's picture is prepared."""
