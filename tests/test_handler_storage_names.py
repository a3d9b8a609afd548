from __future__ import annotations

import pytest

from receiver.config import HandlerConfig
from receiver.errors import ConfigError
from receiver.handlers.storage_names import NameTemplate
from receiver.handling import load_handler
from tests.factories import make_job
from tests.handler_kit import open_desk
from tests.loopback import Seen, response, serve

PNG = b"\x89PNG\r\n\x1a\n" + bytes(1000)


def job(**fields):
    return make_job(**{"metadata": {"team": "red", "a b": "x"}, "remote_id": "r/1"} | fields).public()


def path(template: str, given: dict, index: int = 0) -> str:
    name = NameTemplate(template).name(given, index)
    return "/".join((*name.folders, name.file("png")))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{provider}/{date}/{job}-{index}{ext}", "elkapi/2026-07-01/JOB-3.png"),
        ("{year}/{month}/{day}/{job}_{index}{ext}", "2026/07/01/JOB_3.png"),
        ("team={metadata.team}/{media}/{model}/{job}.{index}{ext}", "team=red/image/elk-1/JOB.3.png"),
        ("{metadata.a b}/{metadata.none}/{job}{index}", "x/_/JOB3"),
        ("{remote_id} ({job}) {index}{ext}", "r_1 (JOB) 3.png"),
    ],
)
def test_fields_stand_for_what_the_job_says(template, expected):
    given = job()
    assert path(template, given, 3) == expected.replace("JOB", given["id"])


@pytest.mark.parametrize(
    "hostile", ["../../etc", "..", ".hidden", "/etc/passwd", "a\0b\n\x1b[31m", "C:\\x", "…", "", "%2e%2e/", "~root", "x" * 5000]
)
def test_nothing_from_outside_makes_a_path(hostile):
    given = job(metadata={"who": hostile}, model=hostile, remote_id=hostile)
    made = path("{metadata.who}/{model}.{remote_id}/{metadata.who}-{job}-{index}{ext}", given)
    parts = made.split("/")
    assert len(parts) == 3
    assert not any(part in ("", ".", "..") or part.startswith(".") or len(part) > 110 for part in parts)
    assert made.isascii()
    assert made.isprintable()
    assert not set(made) & set("\\%~:[")
    assert parts[2].endswith(f"{given['id']}-0.png")  # what tells outputs apart is never cut


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{job}-{index}-{modle}{ext}", "there is no {modle}; did you mean {model}?"),
        ("{job}-{index}-{zzz}", "there is no {zzz}; there are {provider}, {model}"),
        ("{job}-{index}-{metadata.}", "there is no {metadata.}"),
        ("{job}{ext}", "needs {index}"),
        ("{provider}", "needs {job} and {index}"),
        ("", "must be a relative path"),
        ("/{job}-{index}", "must be a relative path"),
        ("{job}-{index}/", "must be a relative path"),
        ("a//{job}-{index}", "must be a relative path"),
        ("{job}/{index}/{ext}", "must be a relative path"),
        ("../{job}-{index}", 'begin with "."'),
        ("./{job}-{index}", 'begin with "."'),
        (".{job}-{index}", 'begin with "."'),
        ("{job}{ext}-{index}", "{ext} may only stand at the end"),
        ("{job}-{index}{ext}{ext}", "{ext} may only stand at the end"),
        ("{job}-{index", "brace"),
        ("{job}-{index}}", "brace"),
        ("{job}\n{index}", "are allowed"),
        ("ü{job}{index}", "are allowed"),
        ("a" * 51 + "{job}{index}", "longer than 50"),
        ("a/" * 8 + "{job}{index}", "more than 8"),
    ],
)
def test_mistakes_in_a_template_are_told_at_start(tmp_path, template, said):
    config = HandlerConfig(name="archive", use="storage", options={"name": template})
    with pytest.raises(ConfigError) as raised:
        load_handler(config, tmp_path)
    (mistake,) = raised.value.mistakes
    assert mistake.key == "handlers.archive.options.name"
    assert said in mistake.detail


@pytest.mark.parametrize("template", ["{metadata.team}/{job}/{index}{ext}", "{year}/{job}-{index}"])
async def test_outputs_are_kept_by_the_template_and_found_again(tmp_path, template):
    async def talk(seen: Seen, writer) -> None:
        writer.write(response(200, PNG))

    async with serve(talk) as peer, open_desk(tmp_path) as desk:
        handler = desk.make("storage", path="kept", name=template)
        event = desk.succeed(f"{peer.url}/a", f"{peer.url}/b", metadata={"team": "../red"})
        await handler.handle(event)
        await handler.handle(event)
    assert len(desk.opened) == 2
    assert desk.stored[:2] == desk.stored[2:]
    found = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert found == [f"kept/{path(template, event.data['job'], index)}" for index in (0, 1)]
