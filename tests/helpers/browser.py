"""A headless browser, where there is one."""

import os
import shutil
import subprocess

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browser(folder, *arguments):
    rules = [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page loads anything from elsewhere
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/profile",
    ]
    return subprocess.run(
        [BROWSER, "--headless=new", *rules, *arguments],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"HOME": str(folder)},
    ).stdout  # fmt: skip
