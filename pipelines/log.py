"""The pack's one logger, a child of diffusers' own: `diffusers.logging.set_verbosity_…` decides what is shown."""

import logging


LOGGER = logging.getLogger("diffusers.webui")
