"""A headless Chromium that waits for what it looks for, and `dagster dev` for it to look at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
PATIENCE_S = 240
"""How long anything may take on a busy machine."""


class Browser:
    """Pages of one server, seen and clicked like a user does, by XPath.

    Args:
        driver: The browser.
        server: Its address.
        folder: Where pictures go.
    """

    def __init__(self, driver: Chrome, server: str, folder: Path) -> None:
        self._driver, self._server, self._folder = driver, server, folder

    def open(self, path: str) -> None:
        self._driver.get(self._server + path)

    def reload(self) -> None:
        self._driver.refresh()

    def all(self, xpath: str) -> list[WebElement]:
        """What is there now."""
        return self._driver.find_elements(By.XPATH, xpath)

    def see(self, xpath: str) -> WebElement:
        """Wait until one is visible; return it."""
        return self._wait(xpath, lambda element: element.is_displayed())

    def click(self, xpath: str) -> None:
        """Wait until one can be clicked, and click it."""
        self._wait(xpath, lambda element: element.is_displayed() and element.is_enabled()).click()

    def see_text(self, text: str, within: str = "*") -> WebElement:
        """Wait until an element of this very text is visible; return it."""
        return self.see(f"//{within}[normalize-space()='{text}']")

    def texts(self, xpath: str) -> list[str]:
        """Texts of what is there, as soon as anything is."""
        self.see(xpath)
        return [element.text for element in self.all(xpath)]

    def picture(self, name: str) -> None:
        self._driver.save_screenshot(str(self._folder / f"{name}.png"))

    def errors(self) -> list[str]:
        """Severe messages of the console since the last call."""
        return [entry["message"] for entry in self._driver.get_log("browser") if entry["level"] == "SEVERE"]

    def _wait(self, xpath, is_ready):
        ignored = [StaleElementReferenceException]  # pages are drawn anew while one looks at them
        wait = WebDriverWait(self._driver, PATIENCE_S, 0.2, ignored)
        return wait.until(lambda _: next(filter(is_ready, self.all(xpath)), None), f"not seen: {xpath}")


@contextmanager
def opened(server: str, folder: Path, size: str = "1400,1000") -> Iterator[Browser]:
    """A browser with a profile of its own."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(DRIVER, log_output=str(folder / "chromedriver.log")))
    try:
        yield Browser(driver, server, folder)
    finally:
        driver.quit()


@contextmanager
def dagster_dev(folder: Path, **variables: str) -> Iterator[str]:
    """`dagster dev` on the repository's workspace at a free port; gives its address, and ends its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "dagster", "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)]
    with (
        (folder / "dagster.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, *command], cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=log,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            _wait_until_served(process, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)  # it ends its own then
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_served(process: subprocess.Popen[bytes], server: str) -> None:
    def is_served(_: object) -> bool:
        assert process.poll() is None, "dagster dev ended"
        with suppress(OSError), urllib.request.urlopen(f"{server}/server_info", timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
        return False

    WebDriverWait(process, PATIENCE_S, 0.3).until(is_served, "dagster dev serves nothing")
