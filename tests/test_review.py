"""The review page, as data and in a real browser (Debian's chromium, where it is installed)."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_shop import SCHEMA, make_shards

from facetclip import review
from facetclip.cli import main
from facetclip.errors import UserError
from facetclip.index import ShardIndex
from facetclip.review import write_review
from facetclip.suggestions import Suggestion, Suggestions, read_corrections, write_suggestions

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


def cells_of(count: int) -> tuple[Suggestion, ...]:
    cells = []
    for number in range(count):
        item, place = f"item {number % 22}", number // 22
        if place % 2:
            cells.append(Suggestion(item, f"P{number}", "colour", "", "red|blue", 0.6, None, "label"))
        else:
            cells.append(Suggestion(item, f"P{number}", "sleeve", "long", "short", 0.93, 0.05, "disagrees"))
    return tuple(cells)


def audit(folder: Path, index: ShardIndex, count: int = 30, title: str = "Suspect cells") -> Path:
    found = Suggestions(title, str(index.folder), index.digest, SCHEMA, cells_of(count), {})
    write_suggestions(found, folder)
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_shards(tmp_path_factory.mktemp("shards"))


def test_a_page_is_one_file_whose_policy_lets_no_request_out(tmp_path, index, capsys):
    audit(tmp_path / "audit", index, title=HOSTILE)
    assert main(["review", str(tmp_path / "audit"), "--out", str(tmp_path / "page.html"), "--most", "25"]) == 0
    assert "25 suggestions" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert "default-src 'none'; img-src data:" in text
    assert HOSTILE not in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("<script") == text.count("</script>") == 3


def test_shards_of_other_data_are_refused(tmp_path, index):
    audit(tmp_path / "audit", index)
    other = make_shards(tmp_path / "other", items=10)
    with pytest.raises(UserError, match="not the data that"):
        write_review(tmp_path / "audit", tmp_path / "page.html", shards=other.folder)
    assert not (tmp_path / "page.html").exists()


def test_shards_that_were_moved_are_asked_for(tmp_path, index):
    folder = audit(tmp_path / "audit", index)
    about = folder / "about.json"
    about.write_text(about.read_text().replace(str(index.folder), str(tmp_path / "gone")))
    with pytest.raises(UserError, match="if they lie elsewhere now, say where by --shards"):
        write_review(folder, tmp_path / "page.html")
    assert write_review(folder, tmp_path / "page.html", shards=index.folder) == 30


def test_nothing_but_a_review_page_is_overwritten(tmp_path, index):
    folder, page = audit(tmp_path / "audit", index), tmp_path / "page.html"
    assert write_review(folder, page) == write_review(folder, page) == 30
    page.write_text("<!doctype html><html><body>mine</body></html>")
    with pytest.raises(UserError, match="is there already and is no review page"):
        write_review(folder, page)
    with pytest.raises(UserError, match=r"expected a file that ends in \.html"):
        write_review(folder, tmp_path / "catalog.csv")
    assert "mine" in page.read_text()


def test_nothing_to_review_is_said(tmp_path, index):
    audit(tmp_path / "audit", index, count=0)
    with pytest.raises(UserError, match="holds no suggestion"):
        write_review(tmp_path / "audit", tmp_path / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium here; apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    folder = tmp_path_factory.mktemp("downloads")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driven = webdriver.Chrome(options, Service(driver))
    driven.downloads = folder  # type: ignore[attr-defined] - for the tests
    yield driven
    driven.quit()


def opened(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get(page.as_uri())


def press(browser: Any, keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.TAG_NAME, "body").send_keys(keys)


def shown(browser: Any, name: str) -> str:
    return browser.execute_script(f"return document.getElementById({name!r}).textContent")


def made(folder: Path, index: ShardIndex, count: int = 30) -> Path:
    write_review(audit(folder / "audit", index, count), folder / "page.html")
    return folder / "page.html"


@pytest.mark.xdist_group("browser")
def test_keys_decide_undo_and_survive_a_reload(tmp_path, index, browser):
    from selenium.webdriver.common.keys import Keys

    opened(browser, made(tmp_path, index))
    assert shown(browser, "suggested") == "short"
    press(browser, "y")
    press(browser, "n")
    press(browser, "3")  # none
    press(browser, "u")
    assert shown(browser, "position") == "5 / 30"
    press(browser, "z")
    assert shown(browser, "position") == "4 / 30"
    press(browser, Keys.ARROW_LEFT)
    assert shown(browser, "verdict") == "set to none"
    browser.refresh()
    assert shown(browser, "count") == "3 of 30 decided"
    text = browser.execute_script("return facetclipReview.corrections()")
    assert text.splitlines() == [
        "item_id,attribute,listed,suggested,verdict,value",
        "item 0,sleeve,long,short,accept,short",
        "item 1,sleeve,long,short,reject,long",
        "item 2,sleeve,long,short,other,none",
    ]


@pytest.mark.xdist_group("browser")
def test_a_first_photo_that_cannot_be_shown_moves_no_other(tmp_path, index, browser, monkeypatch):
    drawn = review.thumbnails
    monkeypatch.setattr(
        review, "thumbnails", lambda index, rows, size: drawn(index, [row for row in rows if row], size)
    )
    opened(browser, made(tmp_path, index))
    kept = browser.execute_script("return document.getElementById('pictures').textContent.split('\\n')")
    assert kept[0] == "" != kept[1]
    press(browser, "n")
    assert browser.execute_script("return document.querySelector('img').src").endswith(kept[1])


@pytest.mark.xdist_group("browser")
def test_a_click_through_with_filters_and_sets_exports_what_apply_reads(tmp_path, index, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    opened(browser, made(tmp_path, index))
    Select(browser.find_element(By.ID, "by-attribute")).select_by_value("colour")
    assert shown(browser, "position") == "1 / 8"
    assert shown(browser, "suggested") == "red|blue"
    browser.find_element(By.ID, "by-reason").send_keys("wu", Keys.ENTER)  # afterwards keys decide again
    press(browser, "u")
    assert shown(browser, "count") == "1 of 30 decided"
    press(browser, "z")
    Select(browser.find_element(By.ID, "by-reason")).select_by_index(0)
    values = browser.find_elements(By.CSS_SELECTOR, ".value")
    assert [value.get_attribute("aria-pressed") for value in values] == ["true", "false", "true"]
    values[0].click()  # red off
    browser.find_element(By.ID, "save-set").click()
    browser.find_element(By.ID, "accept").click()
    Select(browser.find_element(By.ID, "by-state")).select_by_value("open")
    assert shown(browser, "position") == "1 / 6"
    browser.find_element(By.ID, "export").click()
    path = browser.downloads / "corrections.csv"
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    found, _ = read_corrections(path)
    assert [(each.item_id, each.verdict, each.value) for each in found] == [
        ("item 0", "other", "blue"),
        ("item 1", "accept", "red|blue"),
    ]


@pytest.mark.xdist_group("browser")
def test_who_comes_back_to_a_cell_of_several_values_finds_what_was_decided(tmp_path, index, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    def marked() -> list[str]:
        return [each.text[1:].strip() for each in browser.find_elements(By.CSS_SELECTOR, ".value[aria-pressed=true]")]

    opened(browser, made(tmp_path, index))
    Select(browser.find_element(By.ID, "by-attribute")).select_by_value("colour")
    assert marked() == ["red", "blue"]
    press(browser, "1")  # red off
    press(browser, Keys.ENTER)
    press(browser, Keys.ARROW_LEFT)
    assert shown(browser, "verdict") == "set to blue"
    assert marked() == ["blue"]
    press(browser, "2")  # green, too
    press(browser, Keys.ENTER)
    assert browser.execute_script("return facetclipReview.corrections()").endswith("other,green|blue\n")
    for _ in range(9):
        press(browser, Keys.ARROW_RIGHT)
    press(browser, "1")
    press(browser, "y")  # the last one: there is no next to go to
    assert marked() == ["red", "blue"]


@pytest.mark.xdist_group("browser")
def test_titles_with_markup_are_text_and_nothing_asks_the_network(tmp_path, index, browser):
    audit(tmp_path / "audit", index, title=HOSTILE)
    write_review(tmp_path / "audit", tmp_path / "page.html")
    browser.get_log("performance")
    browser.get_log("browser")
    opened(browser, tmp_path / "page.html")
    assert browser.execute_script("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.execute_script("return window.hacked") is None
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
