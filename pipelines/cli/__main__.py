"""`python -m webui_diffusers.pipelines.cli`."""

from .main import main


if __name__ == "__main__":
    main()
