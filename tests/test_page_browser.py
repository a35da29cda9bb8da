"""The page in a headless Chromium: a text is pasted, drawn with the demo model, seen and downloaded, by keyboard
alone; on a desktop and on a phone. With WEBUI_DIFFUSERS_SCREENSHOTS set to a folder, its looks are written there."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image


pytest.importorskip("gradio", reason="needs the extra [ui]")
pytest.importorskip("selenium", reason="needs the extra [test]")

from page_client import PageServer
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from webui_diffusers.pipelines import WebUITxt2ImgPipeline, read_infotext
from webui_diffusers.pipelines.infotext.files import save_picture
from webui_diffusers.pipelines.serve import app
from webui_diffusers.pipelines.serve.page import mount_page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DEMO = Path(__file__).parents[1] / "demo"
TEXT = (
    "a (panda:1.2) <lora:flat:0.6> <lora:fur_detail:0.5>\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 7, Size: 128x128, Denoising strength: 0.3, "
    "Hires upscale: 2, Hires steps: 8, Hires upscaler: R-ESRGAN AnimeVideo"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    pipe = WebUITxt2ImgPipeline.from_pretrained(DEMO / "model", dtype=torch.float32)
    pipe.lora_folder = DEMO / "loras"
    running = PageServer(mount_page(app(pipe)))
    yield running
    running.stop()


class Browser:
    """A headless Chromium with the page open."""

    def __init__(self, url: str, folder: Path, width: int, height: int, *, phone: bool = False):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
            options.add_argument(f"--{switch}")
        options.add_argument(f"--window-size={width},{height}")
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        if phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.get(url)
        self.wait(lambda: self.one("#box textarea"))

    def one(self, selector: str) -> Any:
        """The first visible element, or None."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return next((element for element in found if element.is_displayed()), None)

    def text(self, selector: str) -> str:
        """What stands in an element; "" where there is none."""
        element = self.one(selector)
        return "" if element is None else element.text

    def wait(self, happened: Callable[[], Any], seconds: float = 120.0) -> Any:
        """What `happened` gives once it is true."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := happened():
                    return value
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < end, self.driver.page_source[-2000:]
            time.sleep(0.1)

    def keep(self, name: str) -> None:
        """Write what the page looks like, where somebody wants to see it."""
        folder = os.environ.get("WEBUI_DIFFUSERS_SCREENSHOTS")
        if folder:
            time.sleep(1)  # until nothing moves
            self.driver.save_screenshot(str(Path(folder, f"{name}.png")))

    def network(self) -> tuple[set[str], int, int]:
        """Hosts that were asked, how many requests were sent, how many bytes came."""
        log = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in log if one["method"] == "Network.requestWillBeSent"]
        came = [one["params"]["encodedDataLength"] for one in log if one["method"] == "Network.loadingFinished"]
        hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
        return hosts, len(asked), int(sum(came))


@pytest.fixture
def opened(server: PageServer, tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    browsers: list[Browser] = []

    def open_page(width: int, height: int, **more: Any) -> Browser:
        browsers.append(Browser(server.url, tmp_path, width, height, **more))
        return browsers[-1]

    yield open_page
    for browser in browsers:
        browser.driver.quit()


def press_until(browser: Browser, key: str, wanted: Callable[[Any], bool], most: int = 40) -> Any:
    """Press a key until the focus is on what is wanted, as somebody without a mouse does."""
    for _ in range(most):
        focused = browser.driver.switch_to.active_element
        if wanted(focused):
            return focused
        focused.send_keys(key)
    raise AssertionError("the focus never gets there")


def test_a_text_is_drawn_by_keyboard_and_a_second_look_with_another_seed(opened, server, tmp_path):
    browser = opened(1280, 1160)
    browser.keep("empty")
    hosts, requests, size = browser.network()
    assert hosts == {urlsplit(server.url).netloc} and size < 1_500_000 and requests < 150
    box = press_until(browser, Keys.TAB, lambda focused: focused.tag_name == "textarea")
    assert "Parameters" in box.accessible_name
    box.send_keys(TEXT)
    browser.wait(lambda: "fur_detail" in browser.text("#reading .missing"))
    assert "R-ESRGAN AnimeVideo" in browser.text("#reading .facts")
    assert browser.text("#draw") == "Draw anyway"
    press_until(browser, Keys.TAB, lambda focused: focused.get_attribute("id") == "draw").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.one(".drawing progress") and "Step" in browser.text(".drawing"))
    browser.keep("drawing")
    browser.wait(lambda: browser.one("#pictures img") and browser.one("#draw"))
    assert "Seed: 7," in browser.one("#text textarea").get_attribute("value")
    browser.keep("desktop")

    seed = press_until(browser, Keys.TAB, lambda focused: focused.accessible_name == "Seed")
    seed.send_keys("8")
    press_until(browser, Keys.TAB, lambda focused: focused.get_attribute("id") == "draw-again").send_keys(Keys.ENTER)
    browser.wait(lambda: "Seed: 8," in browser.one("#text textarea").get_attribute("value"))
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#pictures button img")) >= 2
    browser.keep("second")
    press_until(browser, Keys.TAB, lambda focused: "Download PNG" in focused.text).send_keys(Keys.ENTER)
    browser.wait(lambda: list(tmp_path.glob("8*.png")))
    assert "Seed: 8," in read_infotext(next(tmp_path.glob("8*.png")))
    errors = [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == [] and browser.network()[0] == hosts


def test_on_a_phone_a_picture_that_is_chosen_is_read_and_drawn_without_scrolling_sideways(opened, tmp_path):
    browser = opened(390, 844, phone=True)
    text = TEXT.replace(" <lora:fur_detail:0.5>", "").split(", Denoising")[0]
    picture = save_picture(Image.new("RGB", (8, 8)), tmp_path / "sent.png", text)
    browser.driver.find_element(By.CSS_SELECTOR, "#box input[type=file]").send_keys(str(picture))
    browser.wait(lambda: "All that the text names is here." in browser.text("#reading"))
    assert browser.one("#box textarea").get_attribute("value") == text
    browser.keep("phone-read")
    browser.one("#draw").click()
    shown = browser.wait(lambda: browser.one("#pictures img"))
    browser.keep("phone")
    assert 0 <= shown.location["x"] and shown.location["x"] + shown.size["width"] <= 390
    wide = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide == 390
    buttons = [browser.one(f"#{name}") for name in ("draw", "example", "draw-again", "download", "use")]
    assert all(button.size["height"] >= 36 for button in buttons), "large enough for a thumb"
