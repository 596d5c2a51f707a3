"""A headless browser, if one is installed."""

import os
import shutil
import subprocess

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browser(folder, *arguments):
    """Run the browser with a profile below `folder` and return its output."""
    rules = [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no host resolves but this machine
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/profile",
    ]
    return subprocess.run(
        [BROWSER, "--headless=new", *rules, *arguments],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(folder)},
    ).stdout  # fmt: skip
