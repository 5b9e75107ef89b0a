"""What somebody does with the page at /: ask, move weights, compare, stop, copy; with a key, by keyboard, on a small screen."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.page.conftest import ROOT, SERVER_PYTHON, Addresses


def opened(context: Any, url: str) -> Page:
    """The page, once it knows the models."""
    page = context.new_page()
    page.goto(f"{url}/")
    expect(page.locator("#model option")).to_have_count(3)
    return page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def answer(page: Page, column: int = 0) -> Any:
    return page.locator(".column").nth(column).locator(".message.assistant .text").last


def bodies(context: Any) -> list[dict[str, Any]]:
    return [json.loads(own.post_data) for own in context.asked if own.method == "POST"]


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def test_an_answer_streams_and_its_numbers_are_told(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Seed").fill("7")
    ask(page, "hello")
    expect(answer(page)).to_have_text('{"helpful": 1.0, "harmless": 0.5, "fixed": 0.25}')
    expect(page.locator(".numbers")).to_contain_text("tokens")
    expect(page.locator(".numbers")).to_contain_text("request ")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    ask(page, "again")
    expect(page.locator(".message.assistant")).to_have_count(2)
    first, second = bodies(context)
    assert (first["stream"], first["seed"], first["max_tokens"]) == (True, 7, 256)
    assert [own["role"] for own in second["messages"]] == ["system", "user", "assistant", "user"]


def test_a_weight_changes_the_request_and_the_answer(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.get_by_label("Weight of helpful").fill("0.3")
    expect(page.locator("#weight-1-0")).to_have_value("0.3")
    page.locator("#weight-1-1").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Weight of harmless")).to_have_value("0.55")
    ask(page, "hello")
    expect(answer(page)).to_have_text('{"helpful": 0.3, "harmless": 0.55, "fixed": 0.25}')
    expect(page.locator(".message.assistant h3")).to_have_text("Model · helpful 0.3, harmless 0.55, fixed 0.25")
    assert bodies(context)[0]["eft_reward_weights"] == {"helpful": 0.3, "harmless": 0.55}


def test_the_policy_bounds_the_sliders(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    expect(page.locator("#weight-1-0")).to_have_attribute("max", "1.5")
    expect(page.locator("#weight-1-2")).to_be_disabled()
    expect(page.get_by_label("Weight of fixed")).to_be_disabled()
    page.get_by_label("Weight of helpful").fill("1.7")
    ask(page, "hello")
    page.wait_for_timeout(200)
    assert not bodies(context)
    page.get_by_label("Weight of helpful").fill("1.2")
    page.get_by_label("Weight of harmless").fill("9")
    ask(page, "hello")
    expect(answer(page)).to_have_text('{"helpful": 1.2, "harmless": 9.0, "fixed": 0.25}')


def test_two_weights_side_by_side(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "hello")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    page.get_by_label("Two weights side by side").check()
    page.get_by_label("Weight of helpful").nth(1).fill("0")
    ask(page, "again")
    expect(answer(page, 0)).to_contain_text('"helpful": 1.0')
    expect(answer(page, 1)).to_contain_text('"helpful": 0')
    left, right = bodies(context)[1:]
    assert left["messages"] == right["messages"]
    assert sorted(own["eft_reward_weights"]["helpful"] for own in (left, right)) == [0, 1]
    page.get_by_label("Two weights side by side").uncheck()
    expect(page.locator(".column")).to_have_count(1)


def test_a_key_is_asked_for_and_forgotten_with_the_tab(context: Any, addresses: Addresses) -> None:
    page = context.new_page()
    page.goto(f"{addresses.locked}/")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#alert")).to_contain_text("does not know this key")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    ask(page, "hello")
    expect(answer(page)).to_contain_text("helpful")
    assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
    for name in ("curl", "python"):
        assert "secret" not in page.locator(f"#{name}").text_content()
    other = context.new_page()
    other.goto(f"{addresses.locked}/")
    expect(other.locator("#key-form")).to_be_visible()


def test_tokens_are_marked_by_reward_and_tell_their_numbers(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.get_by_label("Model").select_option("trio")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("Temperature").fill("0")
    ask(page, "hello")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    page.get_by_text("Tokens by reward").click()
    tokens = page.locator(".strip .token")
    assert tokens.count() >= 2
    for label in (tokens.nth(at).get_attribute("aria-label") for at in range(tokens.count())):
        assert "reward chat " in (label or "")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator(".tokens [role=status]")).to_have_text(tokens.nth(1).get_attribute("aria-label") or "")
    page.get_by_label("Weight of chat").fill("0")
    ask(page, "hello")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    assert "its pair was not run" in (tokens.first.get_attribute("aria-label") or "")


@pytest.mark.parametrize("kind", ["free", "locked"])
def test_the_copied_request_runs(context: Any, addresses: Addresses, kind: str) -> None:
    url = getattr(addresses, kind)
    page = context.new_page()
    page.goto(f"{url}/")
    if kind == "locked":
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Enter")
    expect(page.locator("#model option")).to_have_count(3)
    page.get_by_label("Message", exact=True).fill('it\'s "so" $HOME \\ `x`\u2028ü')
    page.get_by_label("Weight of helpful").fill("0.7")
    page.get_by_text("This request as curl and Python").click()
    environment = {**os.environ, "EFT_API_KEY": "secret"}
    page.get_by_role("button", name="Copy curl").click()
    expect(page.locator("#status")).to_have_text("Copied: curl.")
    command = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    chunks = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    text = "".join(own["choices"][0]["delta"].get("content", "") for own in chunks if own["choices"])
    assert json.loads(text)["helpful"] == 0.7
    page.get_by_role("button", name="Copy Python").click()
    expect(page.locator("#status")).to_have_text("Copied: python.")
    program = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        [SERVER_PYTHON, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["helpful"] == 0.7


def test_by_keyboard_alone(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message field")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    expect(answer(page)).to_contain_text("helpful")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Clear")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".message")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(context: Any, addresses: Addresses, scheme: str) -> None:
    page = opened(context, addresses.free)
    page.emulate_media(color_scheme=scheme)
    page.get_by_label("Model").select_option("trio")
    page.get_by_label("Most tokens").fill("12")
    page.get_by_label("Two weights side by side").check()
    ask(page, "hello")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    page.evaluate("document.querySelectorAll('details').forEach((own) => (own.open = true))")
    page.get_by_label("Model").select_option("said")
    ask(page, "break")
    expect(page.locator("#alert")).to_be_visible()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_small_screen_scrolls_in_one_direction(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.set_viewport_size({"width": 320, "height": 640})
    page.get_by_label("Two weights side by side").check()
    ask(page, "x" * 200)
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    page.evaluate("document.querySelectorAll('details').forEach((own) => (own.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_markup_stays_text(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    names = page.locator("#model option").all_text_contents()
    page.get_by_label("Model").select_option(names[2])
    ask(page, "markup")
    expect(answer(page)).to_have_text(names[2])
    assert "onerror" in names[2]
    assert page.locator("main img").count() == 0
    assert page.title() == "EFT: try a composition"


def test_thoughts_and_calls(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "think")
    expect(answer(page)).to_have_text("Sunny.")
    page.get_by_text("Thought", exact=True).click()
    expect(page.get_by_text("I must look.")).to_be_visible()
    ask(page, "call")
    expect(page.locator(".calls")).to_contain_text('"name": "look"')


def test_an_error_is_told_with_its_request(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "break")
    expect(page.locator("#alert")).to_contain_text("Request id: ")
    expect(page.locator("#alert")).to_be_focused()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.get_by_label("Temperature").evaluate("(own) => own.removeAttribute('max')")
    page.get_by_label("Temperature").fill("1e30")
    page.get_by_label("Model").select_option("trio")
    ask(page, "word " * 400)
    expect(page.locator("#alert")).to_contain_text("The server answered 400")


def test_an_error_before_the_answer_is_told_and_the_message_kept(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "fail")
    expect(page.locator("#alert")).to_contain_text("The server answered 5")
    expect(page.locator("#alert")).to_contain_text("Request id: ")
    expect(page.get_by_label("Message", exact=True)).to_have_value("fail")
    ask(page, "hello")
    expect(answer(page)).to_contain_text("helpful")
    expect(page.locator("#alert")).to_be_hidden()
    assert [own["content"] for own in bodies(context)[-1]["messages"]] == ["hello"]


def test_rewards_are_switched_off_where_they_cannot_be_told(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "vllm")
    expect(page.locator("#alert")).to_contain_text("Rewards of tokens are switched off now")
    page.get_by_role("button", name="Send").click()
    expect(answer(page)).to_contain_text("helpful")
    first, second = bodies(context)
    assert first["eft_token_rewards"] is True
    assert "eft_token_rewards" not in second


CHUNKS = """() => {
  const { fetch } = window;
  window.fetch = async (url, options) => {
    if (!String(url).endsWith("completions")) return fetch(url, options);
    const { readable, writable } = new TransformStream();
    const writer = writable.getWriter();
    window.say = (text) => writer.write(new TextEncoder().encode(text));
    return new Response(readable, { headers: { "x-request-id": "own" } });
  };
}"""


def test_numbers_are_live_while_the_answer_streams(context: Any, addresses: Addresses) -> None:
    """A stream in the test's hand, cut in the middle of events, with pings between them."""
    page = opened(context, addresses.free)
    page.evaluate(CHUNKS)
    ask(page, "hello")
    page.wait_for_function("window.say")
    numbers = page.locator(".numbers")

    def say(text: str, eft: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        event = f": ping\r\n\r\ndata: {json.dumps({'choices': [choice], 'eft': eft})}\r\n\r\n"
        for part in (event[:25], event[25:]):
            page.evaluate("(text) => { window.say(text); }", part)

    token = {"token": "a", "logprob": -0.1, "rewards": {"x": 0.5, "y": -2.0}}
    say("a", {"progress": {"num_tokens": 5, "num_drafted": 8, "num_accepted": 4}, "tokens": [token]})
    expect(numbers).to_contain_text("4 of 8 drafts accepted (50 %)")
    expect(numbers).to_contain_text("5 tokens")
    expect(page.locator(".log")).to_have_attribute("aria-busy", "true")
    expect(page.locator(".log")).to_have_attribute("aria-live", "polite")
    more = [{"token": "b", "logprob": -1.0, "rewards": {"x": value}} for value in (0.5, 2.0, -0.5, 0.05)]
    say("b", {"progress": {"num_tokens": 9, "num_drafted": 10, "num_accepted": 6}, "tokens": more})
    expect(numbers).to_contain_text("6 of 10 drafts accepted (60 %)")
    expect(numbers).to_contain_text("tokens/s")
    expect(answer(page)).to_have_text("ab")
    marks = page.locator(".strip .token").evaluate_all("(all) => all.map((own) => own.classList[1])")
    assert marks == ["s3", "r1", "r3", "s1", "r0"]
    told = page.locator(".strip .token").first.get_attribute("aria-label")
    assert told == "“a”: reward x +0.50, y −2.00, together −1.50; probability 90.5 %"
    page.get_by_role("button", name="Stop").click()


def test_drafts_of_an_engine_are_told(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    page.get_by_label("Model").select_option("trio")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("40")
    ask(page, "the cat sat on the mat, the cat sat on the mat, the cat sat on")
    expect(page.locator("#status")).to_have_text("The answer is complete.")
    expect(page.locator(".numbers")).to_contain_text("drafts accepted")
    assert bodies(context)[0]["eft_progress"] is True


def test_stop_frees_the_place(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.free)
    ask(page, "wait")
    expect(answer(page)).to_contain_text("one")
    assert 'eft_caller_answers_in_hand{caller="anybody"' in metrics(addresses.free)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".ending")).to_have_text("Stopped.")
    for _ in range(100):
        told = metrics(addresses.free)
        if 'outcome="left"' in told and "eft_http_requests_in_flight 1.0" in told:
            break
        time.sleep(0.1)
    assert 'outcome="left"' in told
    ask(page, "hello")
    expect(answer(page)).to_contain_text("helpful")


def test_under_a_prefix(context: Any, addresses: Addresses) -> None:
    page = opened(context, addresses.prefixed)
    ask(page, "hello")
    expect(answer(page)).to_contain_text("helpful")
    expect(page.locator("#curl")).to_contain_text(f"{addresses.prefixed}/v1/chat/completions")
