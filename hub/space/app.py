"""A page on which everybody may paste the parameters of a webui picture and see it drawn again.

`python app.py`, then http://localhost:7860. WEBUI_DIFFUSERS_MODEL names the model: a Hub id, or a diffusers folder.
Networks are found in the folder `loras` beside this file.
"""

import os
from pathlib import Path

import torch
import uvicorn
from webui_diffusers.pipelines.serve.page import page_app
from webui_diffusers.pipelines.txt2img import WebUITxt2ImgPipeline


MODEL = os.environ.get("WEBUI_DIFFUSERS_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
LORAS = Path(__file__).parent / "loras"


def main() -> None:
    """Load the model and answer until the process is ended."""
    on_gpu = torch.cuda.is_available()
    pipe = WebUITxt2ImgPipeline.from_pretrained(MODEL, dtype=torch.float16 if on_gpu else torch.float32)
    pipe.to("cuda" if on_gpu else "cpu")
    if LORAS.is_dir():
        pipe.lora_folder = LORAS
    host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    uvicorn.run(page_app(pipe), host=host, port=port, log_level="warning", proxy_headers=True, forwarded_allow_ips="*")


if __name__ == "__main__":
    main()
