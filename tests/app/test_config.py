"""The flag table: sources and their order, refusals that name the flag, batching modes, printing."""

import shlex
from pathlib import Path

import msgspec
import pytest

from app import chat_web
from app.__main__ import command_line
from app.chat.settings import command_line as chat_line
from app.checks import check
from app.settings.config import Config
from app.settings.options import UsageError, table, to_toml
from engine.messages import EngineConfig


def parse(*argv: str, env: dict[str, str] | None = None) -> Config:
    return command_line().parse(argv, env or {})[0]


def seed(*argv: str) -> Config:
    return chat_web.command_line().parse(argv, {})[0]


def test_defaults_are_the_documented_ones() -> None:
    config = parse()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)
    assert config.server.drain_timeout == 30
    engine = config.engine_config()
    assert (engine.max_rows, engine.batching, engine.batch_timeout_ms) == (None, "continuous", 0)
    assert (engine.block_size, engine.kv_page_size) == (None, None)  # the model's own


def test_model_overrides_reach_the_engine() -> None:
    given = ["softcap=20", "short_window=128", "rope_dtype=bfloat16", "window_pattern=SSL"]
    engine = parse("--model-override", *given).engine_config()
    wanted = {"softcap": 20.0, "short_window": 128, "rope_dtype": "bfloat16", "window_pattern": "SSL"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(engine), type=EngineConfig).overrides == wanted


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nbatch-size = 2\n[server]\nhost = "::1"\nui = false\n')
    env = {"APP_PORT": "3", "APP_BATCH_SIZE": "4", "APP_CONFIG": str(file)}
    config = parse("--port", "5", env=env)
    assert config.server.port == 5
    assert config.batching.batch_size == 4
    assert (config.server.host, config.server.ui) == ("::1", False)


def test_every_setting_has_its_three_spellings(tmp_path: Path) -> None:
    """Each entry of the table is set through the environment, printed, and read back from the file."""
    samples = {
        "served_model_name": "a,b",
        "model_override": "softcap=20",
        "source": "rl",
        "batching": "static",
        "temperature": "0.5",
        "engine": "inline",
        "kv_bytes": str(1 << 30),
        "te_weight_dtype": "mxfp8",
        "allowed_origins": "https://chat.example,http://[::1]:3000",
        "root_path": "/llm",
        "clustered_attention_impl": "a.module:f",
        "persistent_decode_impl": "a.module:f",
        "otlp_endpoint": "http://collector:4318",
    }
    for entry in table(Config()):
        if entry.flag.is_switch:
            value = "false" if entry.default else "true"
        else:
            value = samples.get(entry.field) or str(entry.default if entry.default is not None else "7")
        config = parse(env={entry.env: value})
        got = getattr(getattr(config, entry.section), entry.field)
        assert got not in (None, ()), entry.env
        if entry.flag.is_switch:
            assert got is not bool(entry.default), entry.env
        file = tmp_path / "one.toml"
        file.write_text(to_toml(config))
        assert parse("--config", str(file)) == config, entry.field


@pytest.mark.parametrize(
    ("argv", "named", "said"),
    [
        (["--batchsize", "3"], "--batchsize", "did you mean --batch-size?"),
        (["--no-prefix-cache"], "--no-prefix-cache", "did you mean --no-prefix-caching?"),
        (["--port", "eighty"], "--port", "not a whole number"),
        (["--port", "65536"], "--port", "between 0 and 65,535"),
        (["--temperature", "nan"], "--temperature", "between 0 and 2"),
        (["--dtype", "bfloat"], "--dtype", "did you mean bfloat16?"),
        (["--device", "gpu"], "--device", "none of"),
        (["--host", ""], "--host", "empty"),
        (["--port"], "--port", "expected one argument"),
        (["--device", "mps"], "--device", "no float64"),
        (["--model-override", "softcap"], "--model-override", "NAME=VALUE"),
        (["--model-override", "softcap=many"], "--model-override", "not a number"),
        (["--model-override", "sequence_len=2.5"], "--model-override", "not a whole number"),
        (["--model-override", "rope_dtype=float16"], "--model-override", "did you mean"),
        (["--model-override", "window_pattern=SXL"], "--model-override", "letters S and L"),
        (["--model-override", "n_layer=3"], "--model-override", "'n_layer'; there are rope_base, "),
        (["--model-override", "kv_block_size=8"], "--model-override", "'kv_block_size'"),
        (["a", "b"], "'b'", "unexpected argument"),
        (["a", "--model", "b"], "--model", "differ"),
        (["--config", "/does/not/exist.toml"], "/does/not/exist.toml", "No such file"),
    ],
)
def test_refusals_name_the_flag(argv: list[str], named: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert named in str(caught.value)
    assert said in str(caught.value)


def test_refusals_name_the_variable_or_the_place_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="APP_UI: 'maybe'"):
        parse(env={"APP_UI": "maybe"})
    file = tmp_path / "bad.toml"
    for text, message in [
        ("prot = 1", "unknown setting prot; did you mean port"),
        ("port = true", "port: True is not of the right type"),
        ("port = [1]", "port: .* is not of the right type"),
        ("port = ", "bad.toml"),
    ]:
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            parse("--config", str(file))


@pytest.mark.parametrize(
    ("argv", "mode", "rows"),
    [
        ([], "continuous", None),
        (["--enable-batch-decode"], "continuous", None),
        (["--enable-batch-decode", "--enable-dynamic-batching", "--batch-size", "3"], "continuous", 3),
        (["--no-enable-batch-decode"], "single", 1),
        (["--no-enable-dynamic-batching"], "continuous", 1),
        (["--batching", "static"], "static", None),
        (["--batching", "single"], "single", 1),
    ],
)
def test_batching_modes(argv: list[str], mode: str, rows: int | None) -> None:
    engine = parse(*argv).engine_config()
    assert (engine.batching, engine.max_rows) == (mode, rows)


@pytest.mark.parametrize(
    ("argv", "mode", "rows", "timeout"),
    [
        ([], "single", 1, 0),
        (["--enable-batch-decode"], "continuous", 1, 0),
        (["--enable-dynamic-batching"], "continuous", 4, 10),
        (["--enable-batch-decode", "--enable-dynamic-batching", "--batch-size", "6"], "continuous", 6, 10),
        (["--batching", "static", "--batch-timeout-ms", "5"], "static", 4, 5),
    ],
)
def test_the_seed_command_line(argv: list[str], mode: str, rows: int, timeout: float) -> None:
    engine = seed(*argv).engine_config()
    assert (engine.batching, engine.max_rows, engine.batch_timeout_ms) == (mode, rows, timeout)


def test_the_seed_short_names() -> None:
    line = "-n 1 -i mid -t 0.5 -k 7 -m 9 -g d20 -s 650 -p 0 -d float32 --device-type cpu --host ::1"
    config = seed(*shlex.split(line))
    model = config.model
    assert (model.source, model.model_tag, model.step) == ("mid", "d20", 650)
    assert (model.dtype, model.device) == ("float32", "cpu")
    assert (config.server.port, config.server.host) == (0, "::1")
    http = config.http_settings()
    assert (http.chat.temperature, http.chat.top_k, http.chat.max_tokens) == (0.5, 7, 9)
    assert (http.sampling.temperature, http.sampling.top_k, http.sampling.max_tokens) == (0.5, 7, 9)
    assert seed("--device-type", "").model.device == "auto"
    assert seed().server.host == "0.0.0.0"
    for name in ("-n", "--num-gpus"):
        with pytest.raises(UsageError, match=f"^{name}: one server"):
            seed(name, "2")


def test_every_name_of_a_setting_counts_in_the_environment_and_in_a_file(tmp_path: Path) -> None:
    assert parse(env={"APP_KV_BLOCK_SIZE": "7"}).batching.block_size == 7
    file = tmp_path / "settings.toml"
    file.write_text("kv_block_size = 9\n")
    assert parse("--config", str(file)).batching.block_size == 9
    assert parse("--config", str(file), env={"APP_BLOCK_SIZE": "8"}).batching.block_size == 8
    with pytest.raises(UsageError, match="APP_KV_BLOCK_SIZE differs from what block_size is set to"):
        parse(env={"APP_KV_BLOCK_SIZE": "7", "APP_BLOCK_SIZE": "8"})
    file.write_text("kv_block_size = 9\nblock_size = 8\n")
    with pytest.raises(UsageError, match="block_size differs"):
        parse("--config", str(file))
    with pytest.raises(UsageError, match="--kv-block-size: -1 is not between 1 and 4,096"):
        parse("--kv-block-size", "-1")


def test_routes_keep_their_own_defaults_unless_told() -> None:
    http = parse("--top-k", "3").http_settings()
    assert (http.chat.temperature, http.chat.top_k, http.chat.max_tokens) == (0.8, 3, 512)
    assert (http.sampling.temperature, http.sampling.top_k, http.sampling.max_tokens) == (1.0, 3, None)


def test_a_budget_below_the_batch_size_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-num-batched-tokens"):
        check(parse("--batch-size", "64", "--max-num-batched-tokens", "32"))


def test_help_names_every_flag() -> None:
    text = command_line().help()
    for entry in table(Config()):
        for name in entry.on_strings:
            assert name in text


def test_seed_and_page_reach_the_http_layer() -> None:
    http = parse("--seed", "5", "--no-ui").http_settings()
    assert (http.sampling.draw_seed(), http.chat.draw_seed(), http.ui) == (5, 5, False)
    free = parse().http_settings()
    assert free.ui
    assert len({free.chat.draw_seed() for _ in range(4)}) > 1


def test_several_front_ends_need_an_engine_of_its_own() -> None:
    with pytest.raises(UsageError, match=r"--api-workers.*--engine inline"):
        check(parse("--api-workers", "2", "--engine", "inline"))
    check(parse("--api-workers", "2"))
    check(parse("--engine", "inline"))


@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
def test_weight_dtype(kind: str) -> None:
    assert parse("--weight-dtype", kind).engine_config().weight_dtype == kind
    assert parse().engine_config().weight_dtype == "auto"
    with pytest.raises(UsageError, match=f"--use-te-weight-only excludes --weight-dtype {kind}"):
        check(parse("--weight-dtype", kind, "--use-te-weight-only"))
    with pytest.raises(UsageError, match="--weight-dtype"):
        parse("--weight-dtype", "int4")


def test_the_parser_of_calls_has_a_name() -> None:
    assert parse().http_settings().tool_call_parser == "auto"
    assert parse("--tool-call-parser", "mistral").http_settings().tool_call_parser == "mistral"
    with pytest.raises(
        UsageError, match=r"--tool-call-parser: 'lama3' is none of auto, hermes, llama3, mistral"
    ):
        parse("--tool-call-parser", "lama3")


def test_a_printed_configuration_is_read_back_whatever_its_characters(tmp_path: Path) -> None:
    file = tmp_path / "printed.toml"
    odd = 'a "quoted" \\ path/\u00e9\U0001f98a\ttab'
    file.write_text(to_toml(parse("--model", odd)), encoding="utf-8")
    assert parse("--config", str(file)).model.model == odd


def test_a_name_of_two_settings_belongs_to_the_program_that_has_the_later_one() -> None:
    line = chat_line()
    config, _ = line.parse(["-p", "a question", "--port", "5"], {"APP_API_KEY_FILE": "a file"})
    assert (config.chat.prompt, config.server.port, config.chat.api_key_file) == ("a question", 5, "a file")
    assert line.typed(["-p", "a question", "a model", "--no-lookahead"]) == {"prompt", "model", "lookahead"}
    names = [name for entry in line.entries for name in entry.on_strings + entry.off_strings]
    assert len(names) == len(set(names))
