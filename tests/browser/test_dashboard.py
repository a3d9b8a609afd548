"""The dashboard in a real browser: what a person at three in the morning does with it."""

from __future__ import annotations

import re
import uuid

import pytest

from receiver.simulator import Fault, Outcome, Scenario
from tests.browser.chromium import PHONE, open_site, open_tab
from tests.stories.home import recorder

BROKEN = """
import pathlib
async def handle(event, context):
    if not pathlib.Path(__file__).with_name("mended").exists():
        raise RuntimeError("the certificate of the shop has expired")
"""
PATHS = (
    "/",
    "/jobs",
    "/deliveries",
    "/notices",
    "/providers",
    "/handlers",
    "/costs",
    "/try",
    "/guide",
    "/guide/settings",
    "/guide/errors",
    "/guide/providers",
    "/guide/deploy",
    "/docs",
)


def broken(folder, name):
    """A handler that fails until the file `mended` is there."""
    (folder / f"{name}.py").write_text(BROKEN)
    return f'[[handlers]]\nname = "shop"\nuse = "{name}:handle"\nevents = ["job.succeeded"]\nretry = {{attempts = 1}}\n'


async def pay(home):
    """A job with a known cost that has come home."""
    (job,) = await home.submit("hoox", model="nano-banana", media="image", metadata={"team": "red"})
    return await home.final(job["id"])


async def lose(home):
    """The id of a job that waits for a person."""
    home.sim.simulator.plan("elkapi", Scenario(seconds=600, faults=frozenset({Fault.SUBMIT_LOST})))
    (job,) = await home.submit("elkapi")
    return job["id"]


async def test_signing_in_leads_back_and_signing_out_ends_it(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        await tab.go("/jobs?status=failed")
        assert re.search(r"/sign-in\?next=", tab.page.url)
        await tab.page.get_by_label("API key").fill("not-the-key")
        await tab.page.get_by_role("button", name="Sign in").click()
        await tab.page.get_by_role("alert").get_by_text("no API key of this server").wait_for()
        tab.complaints.clear()  # Chromium tells of every 401
        await tab.sign_in("/jobs?status=failed")
        assert tab.page.url.endswith("/jobs?status=failed")
        (cookie,) = await tab.page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        await tab.page.get_by_role("button", name="Sign out").click()
        await tab.go("/")
        assert "/sign-in" in tab.page.url
        assert tab.complaints == []


async def test_a_page_keeps_itself_up_to_date(browser, sim, tmp_path):
    async with open_site(sim, tmp_path, more=recorder(tmp_path)) as home, open_tab(browser, home) as tab:
        await tab.sign_in("/jobs")
        await tab.page.get_by_text("There are no jobs yet").wait_for()
        await tab.page.evaluate("window.isTheSame = true")
        sim.simulator.plan("elkapi", Scenario(seconds=2.5))
        (job,) = await home.submit("elkapi", metadata={"user": "42"})
        row = tab.page.locator(f"#row-{job['id']}")
        await row.get_by_text("open").wait_for()
        await row.get_by_text("succeeded").wait_for()
        assert await tab.page.evaluate("window.isTheSame"), "it was loaded anew"
        await row.get_by_text(re.compile("second|now")).first.wait_for()  # told relatively
        await row.get_by_role("link", name=re.compile("job_")).click()
        await tab.page.get_by_role("heading", name="Timeline").wait_for()
        await tab.page.go_back()
        await row.wait_for()
        assert tab.complaints == []


async def test_what_a_person_opened_stays_open_while_the_page_changes(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        sim.simulator.plan("elkapi", Scenario(seconds=4, outcome=Outcome.FAILED, error="no boat"))
        (job,) = await home.submit("elkapi")
        await tab.sign_in(f"/jobs/{job['id']}")
        await tab.page.evaluate("window.isTheSame = true")
        answer = tab.page.locator("li.notice details").first
        await answer.locator("summary").click()
        await tab.page.locator(".headline .failed").wait_for()
        assert await answer.get_attribute("open") is not None
        assert await tab.page.evaluate("window.isTheSame"), "it was loaded anew"
        assert tab.complaints == []


async def test_a_dead_delivery_is_found_and_replayed(browser, sim, tmp_path):
    async with open_site(sim, tmp_path, more=broken(tmp_path, "browser_shop")) as home, open_tab(browser, home) as tab:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await tab.sign_in("/")
        await tab.page.get_by_role("link", name="1 dead delivery to shop").click()
        assert await tab.page.get_by_text("the certificate of the shop has expired").count()
        (tmp_path / "mended").touch()
        await tab.page.get_by_role("button", name="Replay job.succeeded to shop").click()
        await tab.page.get_by_role("status").get_by_text("1 delivery is on the way again").wait_for()
        await tab.go("/")
        await tab.page.get_by_text("Nothing: every job is home").wait_for()
        assert tab.complaints == []


async def test_one_press_on_the_overview_replays_what_is_dead(browser, sim, tmp_path):
    async with open_site(sim, tmp_path, more=broken(tmp_path, "browser_pressed")) as home, open_tab(browser, home) as tab:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await tab.sign_in("/")
        (tmp_path / "mended").touch()
        await tab.page.get_by_role("button", name="Replay 1").click()
        await tab.page.get_by_role("status").get_by_text("1 delivery is on the way again").wait_for()
        await tab.go("/")
        await tab.page.get_by_text("Nothing: every job is home").wait_for()
        assert tab.complaints == []


async def test_all_dead_deliveries_are_replayed_at_once(browser, sim, tmp_path):
    async with open_site(sim, tmp_path, more=broken(tmp_path, "browser_shops")) as home, open_tab(browser, home) as tab:
        for job in [(await home.submit("elkapi"))[0] for _ in range(3)]:
            await home.final(job["id"])
        await tab.sign_in("/deliveries")
        button = tab.page.get_by_role("button", name="Replay all 3 dead")
        await button.wait_for()
        (tmp_path / "mended").touch()
        await button.click()
        await tab.page.get_by_role("status").get_by_text("3 deliveries are on the way again").wait_for()
        await tab.page.get_by_role("heading", name="Done").wait_for()
        assert await tab.page.get_by_role("heading", name="Dead").count() == 0
        assert tab.complaints == []


async def test_a_job_is_found_by_every_name_that_it_has(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        (job,) = await home.submit("elkapi", metadata={"user": "42"})
        await home.submit("elkapi", metadata={"user": "7"})
        job = await home.final(job["id"])
        await tab.sign_in("/jobs")
        for words in (job["id"], job["remote_id"]):
            await tab.page.get_by_label("Search").fill(words)
            await tab.page.keyboard.press("Enter")
            await tab.page.wait_for_url(f"**/jobs/{job['id']}")
            await tab.go("/jobs")
        await tab.page.get_by_label("Search").fill("user=42")
        await tab.page.get_by_role("button", name="Show").click()
        await tab.page.wait_for_url("**/jobs?q=user*")
        assert await tab.page.locator("tr[id^=row-]").count() == 1
        await tab.page.get_by_label("Search").fill("nobody")
        await tab.page.keyboard.press("Enter")
        await tab.page.get_by_text("No job matches").wait_for()
        assert tab.complaints == []


async def test_an_unconfirmed_job_is_given_up_by_hand(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        sim.simulator.plan("elkapi", Scenario(seconds=600, faults=frozenset({Fault.SUBMIT_LOST})))
        (job,) = await home.submit("elkapi")
        await tab.sign_in("/")
        await tab.page.get_by_role("link", name="1 unconfirmed job at elkapi").click()
        await tab.page.locator(f"#row-{job['id']}").get_by_role("link", name=re.compile("job_")).click()
        await tab.page.get_by_text("Abandon…").click()
        await tab.page.get_by_role("button", name="Abandon the job").click()
        await tab.page.get_by_role("status").get_by_text("The job was given up").wait_for()
        assert (await home.job(job["id"]))["finished_by"] == "operator"
        assert tab.complaints == []


async def test_outputs_are_shown_as_they_are(browser, sim, tmp_path):
    keep = f'[[handlers]]\nname = "keep"\nuse = "storage"\n[handlers.options]\npath = "{tmp_path}/outputs"\n'
    async with open_site(sim, tmp_path, more=keep) as home, open_tab(browser, home) as tab:
        (job,) = await home.submit("pixazo", model="hunyuan-image")
        await home.final(job["id"])
        await tab.sign_in(f"/jobs/{job['id']}")
        picture = tab.page.get_by_role("img", name="Output 0")
        await picture.wait_for()
        await tab.page.wait_for_function("document.querySelector('.outputs img').naturalWidth > 0")
        assert tab.complaints == []


async def test_a_job_is_submitted_from_the_form(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        await tab.sign_in("/try")
        await tab.page.locator("select[name=provider]").select_option("elkapi")
        await tab.page.get_by_label("Model").fill("kling-v2")
        await tab.page.get_by_label("Input").fill("{")
        await tab.page.get_by_role("button", name="Submit the job").click()
        await tab.page.get_by_role("alert").get_by_text("is not JSON").wait_for()
        tab.complaints.clear()  # Chromium tells of every 400
        await tab.page.get_by_label("Input").fill('{"prompt": "a boat"}')
        await tab.page.get_by_label("Metadata").fill("user=42")
        await tab.page.get_by_role("button", name="Submit the job").click()
        await tab.page.wait_for_url("**/jobs/job_*")
        job = await home.final(tab.page.url.rpartition("/")[2])
        assert (job["metadata"], job["status"]) == ({"user": "42"}, "succeeded")
        await tab.page.locator(".headline .succeeded").wait_for()
        assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_page_fits_a_phone(browser, sim, tmp_path, scheme):
    more = broken(tmp_path, f"browser_{scheme}") + recorder(tmp_path, "a-handler-with-quite-a-long-name-for-a-phone")
    async with (
        open_site(sim, tmp_path, more=more) as home,
        open_tab(browser, home, viewport=PHONE, color_scheme=scheme, has_touch=True) as tab,
    ):
        (job,) = await home.submit("elkapi", metadata={"a-long-key-of-metadata": "x" * 200})
        await home.final(job["id"])
        await pay(home)
        lost = await lose(home)
        await tab.go("/sign-in")
        assert (await tab.fits(), await tab.too_small()) == (True, [])
        await tab.sign_in("/")
        for path in (*PATHS, f"/jobs/{job['id']}", f"/jobs/{lost}", "/deliveries?state=done", "/costs?key=a-long-key-of-metadata"):
            await tab.go(path)
            await tab.open_all()
            assert (await tab.fits(), await tab.too_small()) == (True, []), path
        assert tab.complaints == []
        await tab.go("/nowhere")
        assert (await tab.fits(), await tab.too_small()) == (True, [])


async def test_pages_can_be_read_and_used_without_javascript(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home, java_script_enabled=False) as tab:
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await tab.sign_in("/")
        await tab.page.get_by_role("link", name="Jobs", exact=True).click()
        await tab.page.get_by_role("link", name=re.compile("job_")).click()
        await tab.page.get_by_role("heading", name="Timeline").wait_for()
        assert await tab.page.locator("time").first.inner_text()
        await tab.go("/")
        assert not await tab.page.locator(".chart").is_visible()  # nobody would draw it
        await tab.go("/docs")
        assert not await tab.page.get_by_text("Reading the document").is_visible()
        assert tab.complaints == []


async def test_nothing_lies_over_a_button_where_times_are_told_in_full(browser, sim, tmp_path):
    async with (
        open_site(sim, tmp_path, more=broken(tmp_path, "browser_full_times")) as home,
        open_tab(browser, home, java_script_enabled=False) as tab,
    ):
        (job,) = await home.submit("elkapi")
        await home.final(job["id"])
        await tab.sign_in("/deliveries?state=dead")
        told, button = tab.page.locator("td time").first, tab.page.get_by_role("button", name="Replay job.succeeded to shop")
        told_box, button_box = await told.bounding_box(), await button.bounding_box()
        assert told_box["x"] + told_box["width"] <= button_box["x"]


async def test_a_keyboard_reaches_the_content_first(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        await tab.sign_in("/jobs")
        await tab.page.keyboard.press("Tab")
        assert await tab.page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await tab.page.keyboard.press("Enter")
        assert await tab.page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"color_scheme": "light"}, id="light"),
        pytest.param({"viewport": PHONE, "color_scheme": "dark"}, id="dark phone"),
        pytest.param({"color_scheme": "dark"}, id="dark", marks=pytest.mark.long),
        pytest.param({"viewport": PHONE}, id="phone", marks=pytest.mark.long),
    ],
)
async def test_axe_finds_nothing_serious(browser, sim, tmp_path, options):
    axe = pytest.importorskip("axe_playwright_python.base").AXE_FILE_PATH.read_text()
    handler = broken(tmp_path, f"browser_axe_{uuid.uuid4().hex}")
    async with open_site(sim, tmp_path, more=handler) as home, open_tab(browser, home, **options) as tab:
        (job,) = await home.submit("elkapi", metadata={"user": "42"})
        await home.final(job["id"])
        await pay(home)
        lost = await lose(home)
        await tab.sign_in("/")
        found = {}
        more = (f"/jobs/{job['id']}", f"/jobs/{lost}", "/deliveries?state=dead", "/deliveries?state=done", "/costs?key=team", "/jobs?q=x")
        for path in (*PATHS, *more, "/nowhere", "/sign-in"):
            if path == "/nowhere":
                assert tab.complaints == []
            await tab.go(path)
            await tab.open_all()
            await tab.page.evaluate(axe)
            violations = await tab.page.evaluate("axe.run(document).then((result) => result.violations)")
            serious = [each for each in violations if each["impact"] in {"serious", "critical"}]
            found |= {(path, each["id"]): [node["html"] for node in each["nodes"][:3]] for each in serious}
        assert found == {}


async def test_who_chooses_a_provider_gets_its_example_and_keeps_what_he_wrote(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        await tab.sign_in("/try")
        provider = tab.page.locator("select[name=provider]")
        model, operation, given = (tab.page.locator(f"[name={name}]") for name in ("model", "operation", "input"))
        await provider.select_option("hoox")
        assert (await operation.input_value(), await model.input_value()) == ("asset", "veo-3.1")
        assert "tide pools at dawn" in await given.input_value()
        await operation.fill("avatar_create")
        await operation.blur()
        assert "wetsuit" in await given.input_value()
        await provider.select_option("pixazo")
        await model.fill("hunyuan-3d")
        await model.blur()
        assert '"a wooden toy boat"' in await given.input_value()
        await given.fill('{"prompt": "mine"}')
        await provider.select_option("elkapi")
        assert (await model.input_value(), await given.input_value()) == ("kling-v3/text-to-video", '{"prompt": "mine"}')
        await given.fill("")
        await provider.select_option("oxen")
        await tab.page.get_by_role("button", name="Submit the job").click()
        await tab.page.wait_for_url("**/jobs/job_*")
        assert tab.complaints == []


async def test_costs_are_drawn_and_follow_what_happens(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home) as tab:
        job = await pay(home)
        await tab.sign_in("/costs?key=team")
        await tab.page.evaluate("window.isTheSame = true")
        cost = job["cost"]["amount"]
        await tab.page.get_by_role("heading", name=f"{cost:g} credits for 1 job").wait_for()
        canvas = tab.page.locator(".chart canvas")
        await canvas.wait_for()
        before = await canvas.evaluate("canvas => canvas.toDataURL()")
        await tab.page.emulate_media(color_scheme="dark")
        await tab.page.wait_for_function("before => document.querySelector('.chart canvas')?.toDataURL() !== before", arg=before)
        await pay(home)
        await tab.page.get_by_role("heading", name=f"{2 * cost:g} credits for 2 jobs").wait_for(timeout=60_000)
        assert await tab.page.evaluate("window.isTheSame"), "it was loaded anew"
        assert await tab.page.locator(".chart canvas").count() == 1
        await tab.page.get_by_role("link", name="red", exact=True).click()
        await tab.page.wait_for_url("**/jobs?*metadata.team=red*")
        assert await tab.page.locator("tr[id^=row-]").count() == 2
        assert tab.complaints == []


async def test_costs_can_be_read_without_javascript(browser, sim, tmp_path):
    async with open_site(sim, tmp_path) as home, open_tab(browser, home, java_script_enabled=False) as tab:
        job = await pay(home)
        await tab.sign_in("/costs")
        assert job["created_at"][:10] in await tab.page.locator("[aria-labelledby^=days-] table").inner_text()
        await tab.page.get_by_label("Key of metadata").fill("team")
        await tab.page.get_by_role("button", name="Show").click()
        await tab.page.get_by_role("heading", name="By team").wait_for()
        assert "key=team" in tab.page.url
        assert tab.complaints == []
