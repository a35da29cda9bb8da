"""The command line `webui-diffusers`: one file a command."""
