"""The terminal client: on a real terminal, against real servers, and by itself."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chat.client import ChatFailed, Client
from app.chat.conversation import BadFile, Conversation
from app.chat.main import main
from app.chat.terminal import visible
from app.settings.http import Access, HttpSettings, Key
from tests.app.scripted_engine import ScriptedEngine, says
from tests.app.server_process import GOLDEN, SERVER, Server, finish, gone, serving, until
from tests.app.serving import served
from tests.app.terminals import Terminal, terminal
from tests.engine.checkpoints import write_checkpoint

CHAT = [*SERVER, "chat"]
GREEDY = ["-t", "0", "--max-tokens", "8"]
STATS = re.compile(r"\[8 tokens, [\d,]+ tokens/s, first after [\d,.]+ ms, cut: [^\]]*\]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model large enough that a test can act while it answers."""
    shape = {"n_layer": 8, "n_embd": 256, "n_head": 4, "n_kv_head": 2, "sequence_len": 2048}
    model = write_checkpoint(tmp_path_factory.mktemp("slow"), "G5", **shape)
    with serving(SERVER, str(model), "--dtype", "float32", "--threads", "1") as server:
        yield server


def url(server: Server) -> list[str]:
    return ["--url", f"http://127.0.0.1:{server.port}"]


def running(server: Server) -> int:
    connection = server.connect()
    connection.request("GET", "/stats")
    stats = json.loads(connection.getresponse().read())
    connection.close()
    return int(stats["running"]) + int(stats["waiting"])


def begun(screen: Terminal) -> Terminal:
    screen.until("/help lists what can be done here.\n> ")
    return screen


def test_a_conversation_with_all_its_commands(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    with terminal([*CHAT, *url(server), *GREEDY, "--system", "Be brief."]) as screen:
        begun(screen)
        first = screen.say("a question")
        assert STATS.search(first)
        screen.say("another")
        assert screen.say(f"/save {file}").startswith("4 messages in ")
        assert "Back to:" in screen.say("/undo")
        again = screen.say("/regenerate")
        assert STATS.sub("", again) == STATS.sub("", first)  # greedy, the same conversation: the same text
        assert screen.say("/sistem").startswith("There is no /sistem; did you mean /system?")
        assert screen.say("/system -") == "system: none"
        screen.say("/new")
        assert screen.say("/regenerate").startswith("There is no question")
        assert "you: a question" in screen.say(f"/load {file}")
        assert screen.say("/system") == "system: Be brief."
        assert "3 answers, 24 tokens, 4 messages kept" in screen.say("/stats")
        assert screen.say("/load /does/not/exist").startswith("error: /does/not/exist: No such file")
        screen.type("/exit\n")
        assert screen.wait() == 0
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *2 * ["user", "assistant"]]
    assert messages[1]["content"] == "a question"


def test_several_lines_are_one_message(server: Server, tmp_path: Path) -> None:
    with terminal([*CHAT, *url(server), *GREEDY]) as screen:
        begun(screen)
        for typed in ("one\\", '"""two'):
            screen.type(typed + "\n")
            screen.until("\n. ")
            screen.say('lines"""' if typed.startswith('"') else "lines")
        screen.say("//new")
        screen.say(f"/save {tmp_path / 'kept.json'}")
        screen.type("\x04")
        assert screen.wait() == 0
    messages = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["one\nlines", "two\nlines", "/new"]


def test_ctrl_c_stops_the_answer_then_drops_the_line_then_leaves(server: Server) -> None:
    with terminal([*CHAT, *url(server), "--seed", "5"]) as screen:
        begun(screen)
        screen.type("tell me all\n")
        screen.until("tell me all\n")
        screen.more()
        assert running(server) == 1
        screen.type("\x03")
        assert re.search(r"\[first after [\d,.]+ ms, stopped\]", screen.until("\n> "))
        until(lambda: running(server) == 0)  # the row is free: the client's going was noticed
        screen.type("half a line")
        screen.until("half a line")
        screen.interrupt("> ")
        assert screen.leave() == 0


def test_once_says_what_the_server_answers(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
    connection = server.connect()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    wanted = json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]
    connection.close()
    done = finish([*CHAT, *url(server), *GREEDY, "-p", "hello"])
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted + "\n", "")


def test_a_server_of_its_own_answers_and_ends() -> None:
    with terminal([*CHAT, str(GOLDEN), "--threads", "1", *GREEDY]) as screen:
        begun(screen)
        children = Path(f"/proc/{screen.pid}/task/{screen.pid}/children").read_text().split()
        (own,) = map(int, children)
        screen.type("hello\n")
        screen.until("first after")
        os.kill(screen.pid, signal.SIGKILL)  # nothing of the client's own can run any more
        until(lambda: gone(own))


def test_a_server_of_its_own_is_not_told_what_is_for_others() -> None:
    taken = {"APP_HOST": "192.0.2.1", "APP_PORT": "1", "APP_SYSTEM": "x", "APP_API_WORKERS": "2"}
    done = finish([*CHAT, str(GOLDEN), "--threads", "1", *GREEDY, "-p", "hello"], **taken)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stderr == ""


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--url", "http://127.0.0.1:1", "-p", "x"], 1, "there is no server at 127.0.0.1:1"),
        (["/does/not/exist", "-p", "x"], 3, "/does/not/exist does not exist"),
        (["--url", "ftp://x", "-p", "x"], 2, "--url: 'ftp://x' is no address"),
        (["--url", "http://127.0.0.1:1", "--batch-size", "4"], 2, "--batch-size is for a server"),
        (["--port", "80", "-p", "x"], 2, "--port: the server of a chat is for the chat alone"),
        (["--urll", "x"], 2, "did you mean --url?"),
        (
            ["--api-key-file", "/does/not/exist", "--url", "http://127.0.0.1:1", "-p", "x"],
            2,
            "--api-key-file",
        ),
        (["--url", "http://127.0.0.1:1"], 2, "holds no question"),
    ],
)
def test_what_goes_wrong_has_a_code_and_a_sentence(
    flags: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    for name in [name for name in os.environ if name.startswith("APP_")]:
        monkeypatch.delenv(name)
    assert main(flags) == code
    out, err = capsys.readouterr()
    assert out == "" and said in err


async def test_pieces_are_the_answer_and_closing_is_noticed() -> None:
    async with served(ScriptedEngine(says("déjà vu, 世界 🌍 and more"))) as api:
        client = Client(api.url + "/v1/", key="a key")

        def ask(most: int | None) -> list[str]:
            stream = client.ask([{"role": "user", "content": "hi"}], {"max_tokens": 100})
            try:
                return [piece for piece, _ in zip(stream, range(most or 1000), strict=False)]
            finally:
                stream.close()

        whole = await asyncio.to_thread(ask, None)
        assert "".join(whole) == "déjà vu, 世界 🌍 and more"
        assert await asyncio.to_thread(ask, 2) == whole[:2]
        await api.engine.until(lambda: not api.engine.open_streams)
        with pytest.raises(ChatFailed, match="messages"):
            await asyncio.to_thread(client.ask, [], {})
        with pytest.raises(ChatFailed, match="nothing at"):
            await asyncio.to_thread(client.get, "/nowhere")


async def test_a_server_with_keys_is_given_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# whose\nright-key  # mine\n")
    settings = HttpSettings(access=Access(keys=(Key.of("right-key"),)))
    async with served(ScriptedEngine(says("welcome")), settings) as api:

        def ask(*flags: str, **more: str) -> "subprocess.CompletedProcess[str]":
            return finish([*CHAT, "--url", api.url, "-p", "hi", *flags], **more)

        refused = await asyncio.to_thread(ask)
        assert refused.returncode == 1 and "--api-key-file or in APP_API_KEY" in refused.stderr
        assert (await asyncio.to_thread(ask, APP_API_KEY="wrong-key")).returncode == 1
        for flags, more in (
            (["--api-key-file", str(keys)], {}),
            ([], {"APP_API_KEY": "right-key"}),
            (["--api-key", "right-key"], {}),
        ):
            done = await asyncio.to_thread(ask, *flags, **more)
            assert (done.returncode, done.stdout) == (0, "welcome\n")
            assert ("everybody on this machine" in done.stderr) == ("--api-key" in flags)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50)
@given(system=st.none() | _texts, turns=st.lists(st.tuples(_texts, _texts), max_size=4))
def test_a_conversation_outlives_its_file(
    tmp_path_factory: pytest.TempPathFactory, system: str | None, turns: list[tuple[str, str]]
) -> None:
    """What is saved is what is loaded; as many questions can be taken back as were asked."""
    file = tmp_path_factory.getbasetemp() / "conversation.json"
    kept = Conversation(system)
    for question, answer in turns:
        kept.add("user", question)
        kept.add("assistant", answer)
    kept.save(file, "a model")
    loaded = Conversation.load(file)
    assert loaded == kept
    assert [loaded.undo() for _ in range(len(turns) + 1)] == [*[True] * len(turns), False]
    assert loaded.messages == []


@pytest.mark.parametrize(
    "text", ["{", "3", '[{"role": "cat", "content": ""}]', '{"messages": [{"role": "user"}]}']
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(BadFile, match=r"file\.json"):
        Conversation.load(file)


@settings(max_examples=50)
@given(st.text(max_size=50))
def test_nothing_that_is_shown_moves_the_cursor(text: str) -> None:
    shown = visible(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert visible(shown) == shown
