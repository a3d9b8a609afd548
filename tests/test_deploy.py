"""What can be checked of config/deploy without deploying it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from receiver.app import check
from receiver.cli.root import COMMANDS
from receiver.config import load
from tests.cli.running import call, running
from tests.loopback import free_port
from tests.web.opened import open_web

DEPLOY = Path(__file__).resolve().parents[1] / "config" / "deploy"
ROOT = DEPLOY.parents[1]
ALERTS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
GRAFANA = json.loads((DEPLOY / "grafana.json").read_text())
METRIC = re.compile(r"\breceiver_[a-z_]+\b")
SUFFIXES = ("_bucket", "_count", "_sum", "_total")


def text_of(name):
    return (DEPLOY / name).read_text()


def run(*argv, **environ):
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def need(program):
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def base_name(name):
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


@pytest.fixture
async def metrics(tmp_path):
    """The families at `/metrics`: their label names and values by name."""
    async with open_web(tmp_path) as web:
        text = (await web.client.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(base_name(family.name), {}).setdefault(label, set()).add(value)
        found.setdefault(base_name(family.name), {})
    return {name: labels for name, labels in found.items() if name.startswith("receiver_")}


def expressions():
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in GRAFANA["panels"] for target in panel.get("targets", [])]
    return [*rules, *panels]


async def test_rules_and_dashboard_ask_for_metrics_that_exist(metrics):
    for expression in expressions():
        names = METRIC.findall(expression)
        assert names
        assert {base_name(name) for name in names} <= set(metrics), expression
        for name, matchers in re.findall(r"(receiver_[a-z_]+)\{([^}]*)\}", expression):
            labels = metrics[base_name(name)]
            for label, sign, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
                if label in ("provider", "status"):
                    continue
                assert label in labels, expression
                assert sign == "!=" or set(value.split("|")) <= labels[label], expression


async def test_every_metric_is_explained_with_its_labels(metrics):
    rows = re.findall(r"^\| `(receiver_[a-z_]+)` \| (.*?) \|", text_of("README.md"), re.MULTILINE)
    told = {base_name(name): set(re.findall("`([a-z]+)`", labels)) for name, labels in rows}
    assert set(told) == set(metrics)
    for name, labels in metrics.items():
        assert set(labels) - {"le"} <= told[name], name


async def test_every_metric_of_worth_is_on_the_dashboard(metrics):
    shown = {base_name(name) for expression in expressions() for name in METRIC.findall(expression)}
    assert set(metrics) <= shown | {"receiver_info"}


def test_alerts_say_what_to_do():
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert {"summary", "action"} <= set(rule["annotations"])


def test_prometheus_takes_the_rules():
    assert "SUCCESS" in run(need("promtool"), "check", "rules", str(DEPLOY / "alerts.yml"))


def test_compose_puts_together_what_is_there():
    compose = yaml.safe_load(text_of("compose.yaml"))
    services = compose["services"]
    assert set(services) == {"receiver", "postgres", "caddy"}
    assert (DEPLOY / services["receiver"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["receiver"]["build"]["dockerfile"]).is_file()
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file()
        assert set(service["networks"]) <= set(compose["networks"])
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]
    asked = set(re.findall(r"\$\{(\w+)", text_of("compose.yaml") + text_of("receiver.toml")))
    assert asked == set(re.findall(r"^(\w+)=", text_of("env.example"), re.MULTILINE))


def test_the_configuration_of_compose_loads():
    names = re.findall(r"^(\w+)=", text_of("env.example"), re.MULTILINE)
    environ = dict.fromkeys(names, "0123456789abcdef" * 4) | {"RECEIVER_DOMAIN": "hooks.example.com"}
    config = check(load(text_of("receiver.toml"), environ, folder=DEPLOY)).config
    caddy = yaml.safe_load(text_of("compose.yaml"))["services"]["caddy"]["networks"]["front"]["ipv4_address"]
    assert config.server.trusted_proxies == (f"{caddy}/32",)
    assert config.store.url.startswith("postgresql://")


def test_the_image_runs_as_nobody_and_copies_what_is_there():
    lines = text_of("Dockerfile").splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    assert "USER receiver" in lines
    assert "curl" not in text_of("Dockerfile")
    (health,) = re.findall(r'CMD (\["python".*\])', text_of("Dockerfile"))
    compile(json.loads(health)[2], "healthcheck", "exec")
    extras = re.findall(r"^ARG EXTRAS=(.*)$", text_of("Dockerfile"), re.MULTILINE)[0].split(",")
    assert all(re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE) for extra in extras)


def test_the_image_s_context_holds_what_is_copied_and_no_secret():
    lines = text_of("Dockerfile.dockerignore").splitlines()
    copied = {name for line in text_of("Dockerfile").splitlines() if re.match("COPY [^-]", line) for name in line.split()[1:-1]}
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert lines.index("*") < lines.index("!config") < lines.index("config/deploy/.env")


def test_the_steps_for_systemd_make_a_configuration_that_loads(tmp_path):
    """As they stand there, but for the places, the packages, and systemd itself."""
    (block,) = re.findall(r"^## systemd$.*?```sh\n(.*?)```", text_of("README.md"), re.MULTILINE | re.DOTALL)
    steps = [line for line in block.splitlines() if re.match("mkdir|/opt|sed|install|echo", line)]
    assert len(steps) == 5
    script = "\n".join(["set -e", *steps]).replace("/opt/receiver/bin/receiver", f"{sys.executable} -m receiver")
    run("sh", "-c", script.replace("/etc/receiver", str(tmp_path / "etc")), RECEIVER_API_KEY="")
    written = tmp_path / "etc" / "receiver.env"
    assert written.stat().st_mode & 0o077 == 0
    environ = dict(line.split("=", 1) for line in written.read_text().splitlines()) | {"PIXAZO_API_KEY": "k"}
    config = check(load((tmp_path / "etc" / "receiver.toml").read_text(), environ, folder=tmp_path / "etc")).config
    assert config.server.api_keys == (environ["RECEIVER_API_KEY"],)
    assert config.store.url == "sqlite:////var/lib/receiver/receiver.db"
    assert config.handlers[0].options == {"path": "/var/lib/receiver/outputs"}


@pytest.mark.parametrize("name", ["receiver.service", "receiver-poll.service"])
def test_units_run_commands_that_exist_and_keep_to_themselves(name):
    text = text_of(name)
    (words,) = re.findall(r"^ExecStart=\S+/receiver (.*)$", text, re.MULTILINE)
    assert words in COMMANDS
    for line in ("DynamicUser=yes", "StateDirectory=receiver", "ProtectSystem=strict", "NoNewPrivileges=yes", "MemoryDenyWriteExecute=yes"):
        assert line in text.splitlines()


def test_systemd_takes_the_units(tmp_path):
    analyze = need("systemd-analyze")
    names = ["receiver.service", "receiver.socket", "receiver-poll.service"]
    for name in names:
        (tmp_path / name).write_text(text_of(name).replace("/opt/receiver/bin/receiver", sys.executable))
    assert run(analyze, "verify", *(str(tmp_path / name) for name in names)).strip() == ""


CADDY = ["caddy", "run", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
SERVER = """
[server]
port = {port}
public_url = "http://127.0.0.1:{front}"
api_keys = ["an-api-key-behind-a-proxy"]
trusted_proxies = ["127.0.0.1/32"]
[network]
allow_private = ["127.0.0.0/8"]
[providers.replicate]
api_key = "any"
base_url = "{base_url}"
callback_secrets = {callback_secrets}
"""


def caddy_environ(folder, domain, upstream=""):
    """Caddy keeps its things in the folder."""
    return {"RECEIVER_DOMAIN": domain, "RECEIVER_UPSTREAM": upstream, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}


def write_nginx(folder, site):
    """A whole configuration for the site, which is a file of the http block; what to start it with."""
    (folder / "receiver.conf").write_text(site)
    temporary = "".join(f"{each}_temp_path {folder}; " for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.getuid() == 0 else ""  # else its workers are nobody, to whom the folder is shut
    http = f"access_log {folder}/access.log; {temporary} include {folder}/receiver.conf;"
    (folder / "main.conf").write_text(f"{user} daemon off; pid {folder}/pid; events {{}} http {{ {http} }}")
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "main.conf")]


def start_proxy(name, folder, port, front):
    """The proxy as its file stands, but for names, certificates and ports."""
    if name == "caddy":
        words, environ = CADDY, caddy_environ(folder, f"http://127.0.0.1:{front}", f"127.0.0.1:{port}")
    else:
        site = re.sub(r"(?m)^ *(ssl_certificate|listen \[).*\n", "", text_of("nginx.conf")).replace("127.0.0.1:8080", f"127.0.0.1:{port}")
        words, environ = write_nginx(folder, site.replace("listen 443 ssl;", f"listen 127.0.0.1:{front};")), {}
    return subprocess.Popen(words, env=os.environ | environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["caddy", "nginx"])
async def test_signed_callbacks_come_home_through_a_proxy(sim, tmp_path, name):
    need(name)
    port, front = free_port(), free_port()
    values = {key: json.dumps(value).strip('"') for key, value in sim.settings("replicate").items()}
    (tmp_path / "receiver.toml").write_text(SERVER.format(port=port, front=front, **values))
    (tmp_path / "proxy").mkdir()
    proxy = start_proxy(name, tmp_path / "proxy", port, front)
    try:
        async with asyncio.timeout(20):
            while not await answers(front):
                await asyncio.sleep(0.05)
        with running(tmp_path, "serve") as server:
            server.line("Receiver listens on")
            said = (await asyncio.to_thread(call, tmp_path, "doctor"))[1]
            assert "bodies and headers arrive as they are sent" in said, said
            words = ("submit", "replicate", "black-forest-labs/flux-schnell", "-i", "prompt=a boat", "--wait")
            code, said, _ = await asyncio.to_thread(call, tmp_path, *words)
            assert (code, "by callback" in said) == (0, True), said
    finally:
        proxy.terminate()
        proxy.wait(20)
    assert not (tmp_path / "proxy" / "access.log").exists() or "/callbacks/" not in (tmp_path / "proxy" / "access.log").read_text()


async def answers(port):
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def test_caddy_takes_its_file(tmp_path):
    need("caddy")
    assert "Valid configuration" in run("caddy", "validate", *CADDY[2:], **caddy_environ(tmp_path, "hooks.example.com"))


def test_nginx_takes_its_file(tmp_path):
    need("nginx")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    what = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1")
    run(need("openssl"), *what, "-keyout", str(key), "-out", str(certificate))
    site = text_of("nginx.conf").replace("listen [::]:443 ssl;", "").replace("listen 443", f"listen 127.0.0.1:{free_port()}")
    site = re.sub(r"\S+/privkey\.pem", str(key), re.sub(r"\S+/fullchain\.pem", str(certificate), site))
    assert "test is successful" in run(*write_nginx(tmp_path, site), "-t")


def test_litestream_copies_the_file_that_the_units_write():
    (database,) = yaml.safe_load(text_of("litestream.yml"))["dbs"]
    assert database["path"] == "/var/lib/receiver/receiver.db"
    assert database["replicas"][0]["type"] == "s3"
