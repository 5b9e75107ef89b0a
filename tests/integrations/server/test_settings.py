"""Flags go before environment, environment before the file; what is unsafe or misspelt is refused with one line."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from eft_engine import TunedPair
from eft_engine.cli import main
from eft_engine.cli.trio_options import choose_trio
from eft_engine.errors import InvalidOptionError
from eft_integrations.server.command import composition
from eft_integrations.server.composition_settings import CompositionSettings
from eft_integrations.server.loading import merged_pairs
from eft_integrations.server.settings import ServerSettings, load_settings

TOML = """
port = 1111
default_max_tokens = 50

[engine]
max_num_seqs = 4

[[compositions]]
name = "assistant"
base = "org/large"
weights = { chat = 0.7 }
[compositions.pairs.chat]
tuned = "org/small-chat"
reference = "org/small"
weight = 0.9

[[compositions]]
name = "plain"
base = "org/large"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "eft.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def test_file_describes_compositions(file: Path) -> None:
    settings = load_settings(file)
    assistant, plain = settings.served
    assert assistant.tuned_pairs()["chat"].weight == 0.9
    assert assistant.weights == {"chat": 0.7}
    assert (plain.name, plain.base, plain.pairs) == ("plain", "org/large", {})


def test_file_of_the_documentation_is_understood(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
    shown = next(text for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "[engine]" in text)
    path = tmp_path / "eft.toml"
    path.write_text(shown, encoding="utf-8")
    assistant, helpful = load_settings(path).served
    assert list(merged_pairs([assistant, helpful])) == ["helpful", "harmless"]
    assert assistant.weights == {"helpful": 1.0, "harmless": 0.3}


def test_flags_go_before_environment_and_environment_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (load_settings(file).port, load_settings(file).engine.max_num_seqs) == (1111, 4)
    monkeypatch.setenv("EFT_SERVE_PORT", "2222")
    monkeypatch.setenv("EFT_SERVE_ENGINE__MAX_NUM_SEQS", "8")
    assert (load_settings(file).port, load_settings(file).engine.max_num_seqs) == (2222, 8)
    flagged = load_settings(file, port=3333, engine={"max_num_seqs": 2})
    assert (flagged.port, flagged.engine.max_num_seqs, flagged.default_max_tokens) == (3333, 2, 50)


def test_server_s_queue_is_bounded_unless_it_is_told_otherwise(file: Path) -> None:
    assert ServerSettings().engine.max_queued_requests == 256
    assert load_settings(file).engine.max_queued_requests == 256
    assert load_settings(file, engine={"max_queued_requests": 3}).engine.max_queued_requests == 3


def test_without_compositions_the_preset_is_served() -> None:
    (served,) = load_settings().served
    assert (served.name, served.preset) == ("smollm2-json", "smollm2-json")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(InvalidOptionError, match="set an API key"):
        load_settings(host=host)
    assert load_settings(host=host, api_key="secret").plain_keys == ["secret"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert load_settings(host=host).is_loopback


def test_blank_key_is_no_key() -> None:
    with pytest.raises(InvalidOptionError, match="set an API key"):
        load_settings(host="0.0.0.0", api_key=" , ")


def test_key_is_never_shown() -> None:
    assert "secret" not in repr(load_settings(api_key="secret"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": 70000}, "port: Input should be less than or equal to 65535"),
        ({"prot": 1}, "prot: Extra inputs are not permitted"),
        ({"engine": {"max_num_seq": 4}}, "did you mean 'max_num_seqs'"),
        ({"compositions": [{"name": "a"}]}, "needs base .* preset or url"),
        ({"compositions": [{"name": "a@b", "base": "x"}]}, "must not contain @"),
        ({"compositions": [{"name": "a", "base": "x"}] * 2}, "two compositions are called 'a'"),
        ({"compositions": [{"name": "a", "base": "x", "weights": {"b": 1}}]}, "weight for 'b'"),
        ({"compositions": [{"name": "a", "preset": "x", "pairs": {"b": {}}}]}, "a preset has its own pairs"),
        ({"compositions": [{"name": "a", "preset": "x"}]}, "no preset 'x'; known presets"),
        (
            {"compositions": [{"name": "a", "preset": "atlas", "weights": {"b": 1}}]},
            "weight for 'b'; its pairs are assistant",
        ),
        (
            {"compositions": [{"name": "a", "preset": "atlas", "weight_policy": {"b": "free"}}]},
            "rule for 'b', and the pairs",
        ),
        ({"compositions": [{"name": "a", "base": "x", "pairs": {"b": {"tuned": "t"}}}]}, "pair 'b' needs reference"),
        (
            {"compositions": [{"name": "a", "preset": "atlas", "reasoning_tags": ["", "b"]}]},
            "reasoning_tags.0: .* at least 1",
        ),
        ({"uds_mode": "660"}, "uds_mode belongs to uds"),
        ({"allowed_hosts": ["http://a"]}, "allowed_hosts: .* without scheme and port, .*'http://a'"),
        ({"allowed_hosts": ["a:80"]}, "allowed_hosts: .*'a:80'"),
        ({"allowed_hosts": [""]}, "allowed_hosts: .*''"),
        ({"cors_origins": ["http://a/"]}, "cors_origins: .* without a path, .*'http://a/'"),
        ({"cors_origins": ["a"]}, "cors_origins: .*'a'"),
    ],
)
def test_mistake_is_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        load_settings(**flags)


def test_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="no configuration file"):
        load_settings(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("port = = 1", encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="broken.toml"):
        load_settings(broken)


def test_names_and_origins_that_can_be_called_are_taken() -> None:
    hosts = ["a", "*.example.org", "*", "10.0.0.7", "fe80::1"]
    origins = ["https://example.org", "http://localhost:3000", "*", "null"]
    settings = load_settings(allowed_hosts=hosts, cors_origins=origins)
    assert (settings.allowed_hosts, settings.cors_origins) == (hosts, origins)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("EFT_SERVE_PROT", "9000", "did you mean EFT_SERVE_PORT?"),
        ("EFT_SERVE_ENGINE_MAX_NUM_SEQS", "3", "did you mean EFT_SERVE_ENGINE__MAX_NUM_SEQS?"),
        ("EFT_SERVE_API_KEYS", "secret", "did you mean EFT_SERVE_API_KEY?"),
        ("EFT_SERVE_PORT__NUMBER", "3", "no setting"),
        ("EFT_SERVE_ALLOWED_HOSTS", "a,b", 'EFT_SERVE_ALLOWED_HOSTS must be JSON: a list as \\["a"'),
    ],
)
def test_variable_that_would_do_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidOptionError, match=message) as refused:
        load_settings()
    assert value not in str(refused.value)


def test_format_of_a_file_is_told_by_its_name_in_either_case(tmp_path: Path) -> None:
    (tmp_path / "EFT.YAML").write_text("port: 9001", encoding="utf-8")
    assert load_settings(tmp_path / "EFT.YAML").port == 9001
    (tmp_path / "eft.conf").write_text("port: 9001", encoding="utf-8")
    with pytest.raises(InvalidOptionError, match="eft.conf cannot be read as TOML"):
        load_settings(tmp_path / "eft.conf")


def test_key_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbfalice secret\n")
    assert [key.name for key in load_settings(api_key_file=tmp_path / "keys").known_keys] == ["alice"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight", "json=0.5"], "--weight speaks of the composition"),
        (["--name", "m"], "--name speaks of the composition"),
        (["--preset", ""], "preset"),
        (["--print"], "--print belongs to --engine vllm"),
        (["--vllm-args", "--x"], "--vllm-args belongs to --engine vllm"),
        (["--engine", "vllm", "--vllm-args", "'a"], "--vllm-args: No closing quotation"),
    ],
)
def test_flag_that_would_do_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.setattr("sys.argv", ["eft", "serve", "--port", "0", *flags])
    monkeypatch.setattr("eft_integrations.server.loading.load_compositions", pytest.fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_describe_a_composition() -> None:
    made = composition("m", "large", "t", "r", ["safe=a,b"], None, ["safe=0.5", "tuned=2"])
    assert made == {
        "name": "m",
        "base": "large",
        "preset": None,
        "pairs": {"tuned": {"tuned": "t", "reference": "r"}, "safe": {"tuned": "a", "reference": "b"}},
        "weights": {"safe": 0.5, "tuned": 2.0},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m", "large", "t", None, None, None, None), "belong together"),
        (("m", "large", None, None, ["safe=a"], None, None), "NAME=TUNED,REFERENCE"),
        (("m", "large", None, None, None, None, ["0.5"]), "NAME=NUMBER"),
        (("m", "large", None, None, None, None, ["a=b"]), "NAME=NUMBER"),
    ],
)
def test_flag_that_cannot_be_read_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        composition(*arguments)


READABLE = [
    ["chat=a,b"],
    ["chat=a,b", "json=c,d"],
    [" chat = org/model/file.gguf , b"],
    ["chat=a=1,b"],
]
UNREADABLE = [
    ["chat"],
    ["chat=a"],
    ["=a,b"],
    ["chat=a,"],
    ["chat=,b"],
    ["chat=a,b,0.5"],
    ["chat=a,b,c"],
    ["chat= , b"],
    ["chat=a,b", "chat=c,d"],
    ["tuned=a,b"],
    [""],
]


@pytest.mark.parametrize("pairs", [*READABLE, *UNREADABLE], ids=str)
def test_both_commands_read_pairs_alike(pairs: list[str]) -> None:
    def of_serve() -> dict[str, TunedPair]:
        made = composition("m", "large", "t", "r", pairs, None, None)
        return CompositionSettings.model_validate(made).tuned_pairs()

    def of_the_others() -> dict[str, TunedPair]:
        return choose_trio(base="large", tuned="t", reference="r", pair=pairs).pairs

    if pairs in READABLE:
        assert of_serve() == of_the_others()
        assert list(of_serve()) == ["tuned", *(text.partition("=")[0].strip() for text in pairs)]
        return
    said = []
    for command in (of_serve, of_the_others):
        with pytest.raises(InvalidOptionError, match="--pair") as refused:
            command()
        said.append((str(refused.value), refused.value.option, refused.value.value))
    assert said[0] == said[1]


def test_weight_that_is_no_number_is_named() -> None:
    with pytest.raises(InvalidOptionError, match="weights.b: must be a finite number or a schedule"):
        load_settings(
            compositions=[{"name": "a", "base": "x", "pairs": {"b": {}}, "weights": {"b": float("nan")}}],
        )


def test_serve_is_a_command_of_eft_and_a_mistake_in_a_flag_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [entry_point.name for entry_point in entry_points(group="eft.commands")]
    assert "serve" in known, "the installed package is older than its source; make venv installs it again"
    monkeypatch.setattr("sys.argv", ["eft", "serve", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: host 0.0.0.0 can be reached by others: set an API key")
