"""The official OpenAI Python client against a running hearth: `openai_sdk.py URL KEY [MODEL]`, with URL as in
http://127.0.0.1:5052/v1. Exits 0 when every check holds, 1 with the failed ones otherwise; run.sh starts all of it."""

import json
import math
import sys
import traceback
import urllib.request

import openai
from openai import OpenAI

URL, KEY = sys.argv[1], sys.argv[2]
client = OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
MODEL = sys.argv[3] if len(sys.argv) > 3 else client.models.list().data[0].id
CODE = "def main(argv):\n    for name in "
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def complete(**fields):
    return client.completions.create(**{"model": MODEL, "prompt": CODE, "max_tokens": 12, "temperature": 0, **fields})


def chat(**fields):
    given = {"model": MODEL, "messages": [{"role": "user", "content": "a loop"}], "max_tokens": 8, "temperature": 0}
    return client.chat.completions.create(**{**given, **fields})


def refused(kind, call, param=None, code=None, words=()):
    try:
        call()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert param is None or error.param == param, (error.param, error.message)
        assert code is None or error.code == code, (error.code, error.message)
        assert error.request_id, "an error carries the request's id"
        for word in words:
            assert word in error.message, (word, error.message)
        return error
    raise AssertionError(f"not refused; {kind.__name__} was expected")


@check
def models_are_listed_and_fetched():
    listed = list(client.models.list())
    assert MODEL in [m.id for m in listed], listed
    model = client.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "hearth")
    assert isinstance(model.created, int) and model.created > 1_600_000_000
    refused(openai.NotFoundError, lambda: client.models.retrieve("gpt-4"), code="model_not_found", words=["gpt-4"])


@check
def a_completion_has_every_field():
    answer = complete()
    assert answer.object == "text_completion" and answer.model == MODEL and answer.id.startswith("cmpl-")
    assert isinstance(answer.created, int)
    assert answer._request_id and answer._request_id in answer.id
    [choice] = answer.choices
    assert choice.index == 0 and choice.finish_reason in ("stop", "length") and choice.logprobs is None and choice.text
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if choice.finish_reason == "length":
        assert usage.completion_tokens == 12
    assert usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens


@check
def equal_requests_have_equal_answers():
    assert complete().choices[0].text == complete().choices[0].text
    seeded = [complete(temperature=1, seed=s, max_tokens=24).choices[0].text for s in (7, 7, 8, -1)]
    assert seeded[0] == seeded[1]
    assert len(set(seeded)) > 1, "seeds draw differently"
    free = {complete(temperature=1, max_tokens=24).choices[0].text for _ in range(4)}
    assert len(free) > 1, "without a seed answers differ"


@check
def a_stream_is_the_whole_in_pieces():
    whole = complete(max_tokens=40, logprobs=2)
    chunks = list(complete(max_tokens=40, logprobs=2, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(c.id == chunks[0].id and c.created == chunks[0].created and c.model == MODEL for c in chunks)
    assert all(c.object == "text_completion" for c in chunks)
    assert all(c.usage is None for c in pieces)
    assert "".join(c.choices[0].text for c in pieces) == whole.choices[0].text
    reasons = [c.choices[0].finish_reason for c in pieces]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    for field in ("tokens", "token_logprobs", "text_offset"):
        joined = [x for c in pieces if c.choices[0].logprobs for x in getattr(c.choices[0].logprobs, field)]
        assert joined == getattr(whole.choices[0].logprobs, field), field


@check
def a_gap_is_filled():
    answer = complete(prompt="def add(a, b):\n    return ", suffix="\n\nprint(add(1, 2))\n")
    streamed = complete(prompt="def add(a, b):\n    return ", suffix="\n\nprint(add(1, 2))\n", stream=True)
    assert "".join(c.choices[0].text for c in streamed) == answer.choices[0].text
    for marker in ("fim", "<s>", "</s>", "[SUFFIX]"):
        assert marker not in answer.choices[0].text


@check
def log_probabilities_line_up_with_the_text():
    choice = complete(logprobs=3, stop=["zzzzzz"]).choices[0]
    lists = choice.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs):
        assert logprob <= 0 and 3 <= len(top) <= 4
        assert math.isclose(top[token], max(top.values()), abs_tol=1e-6), "greedy takes the best"
    if choice.finish_reason == "length":
        assert "".join(lists.tokens) == choice.text
        for token, offset in zip(lists.tokens, lists.text_offset):
            assert choice.text[offset : offset + len(token)] == token
    assert complete(logprobs=0).choices[0].logprobs.tokens == lists.tokens


@check
def echo_agrees_with_what_was_drawn():
    drawn = complete(logprobs=1)
    text = drawn.choices[0].text
    echoed = complete(prompt=CODE, echo=True, logprobs=1)
    assert echoed.choices[0].text == CODE + text
    lists = echoed.choices[0].logprobs
    assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None
    count = len(drawn.choices[0].logprobs.tokens)
    assert lists.token_logprobs[-count:] == drawn.choices[0].logprobs.token_logprobs
    assert lists.tokens[-count:] == drawn.choices[0].logprobs.tokens
    assert len(lists.tokens) == echoed.usage.prompt_tokens + echoed.usage.completion_tokens
    # The tokens that were drawn, scored as a prompt.
    ids = tokens_of(CODE + text)
    if len(ids) == drawn.usage.prompt_tokens + count:
        scored = complete(prompt=ids, echo=True, logprobs=1, max_tokens=0)
        assert scored.choices[0].finish_reason == "length" and scored.usage.completion_tokens == 0
        for a, b in zip(scored.choices[0].logprobs.token_logprobs[-count:], lists.token_logprobs[-count:]):
            assert math.isclose(a, b, abs_tol=1e-4), (a, b)
    streamed = list(complete(prompt=CODE, echo=True, logprobs=1, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == echoed.choices[0].text


def tokens_of(text):
    root = URL.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    body = json.dumps({"model": MODEL, "prompt": text}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{root}/tokenize", body, headers)) as answer:
        return json.load(answer)["tokens"]


@check
def offsets_are_characters_of_the_text():
    choice = complete(prompt="s = '日本語 😀'; ", echo=True, logprobs=1, max_tokens=24, temperature=1, seed=1).choices[0]
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    for token, offset in zip(tokens, offsets):
        if not token.startswith("\\x") and "\ufffd" not in choice.text:
            assert choice.text[offset : offset + len(token)] == token, (token, offset)


@check
def several_prompts_and_choices_keep_their_order():
    prompts = [CODE, "import ", "class A:\n"]
    answer = complete(prompt=prompts, n=2)
    assert [c.index for c in answer.choices] == list(range(6))
    alone = [complete(prompt=p).choices[0].text for p in prompts]
    assert [c.text for c in answer.choices] == [t for t in alone for _ in range(2)], "greedy choices are all alike"
    assert answer.usage.completion_tokens >= 6
    texts = {}
    for chunk in complete(prompt=prompts, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert [texts[i] for i in range(6)] == [c.text for c in answer.choices]
    drawn = complete(n=4, temperature=1, seed=3, max_tokens=24)
    assert len({c.text for c in drawn.choices}) > 1, "choices of one seed differ"
    assert [c.text for c in complete(n=4, temperature=1, seed=3, max_tokens=24).choices] == [
        c.text for c in drawn.choices
    ]


@check
def prompts_may_be_tokens():
    ids = tokens_of(CODE)
    assert complete(prompt=ids).choices[0].text == complete().choices[0].text
    answer = complete(prompt=[ids, tokens_of("import ")])
    assert len(answer.choices) == 2 and answer.choices[0].text == complete().choices[0].text


@check
def stop_strings_never_leak():
    free = complete(max_tokens=60).choices[0].text
    for at in range(0, len(free) - 4, 3):
        stop = free[at : at + 4]
        expected = free[: free.index(stop)]
        answer = complete(max_tokens=60, stop=[stop]).choices[0]
        assert (answer.text, answer.finish_reason) == (expected, "stop"), stop
    stop = free[20:24]
    pieces = list(complete(max_tokens=60, stop=stop, stream=True))
    assert "".join(c.choices[0].text for c in pieces) == free[: free.index(stop)]
    scored = complete(max_tokens=60, stop=stop, logprobs=1).choices[0]
    offsets = scored.logprobs.text_offset
    assert offsets == sorted(offsets) and len(scored.logprobs.tokens) == len(offsets)


@check
def a_turn_has_every_field():
    answer = chat()
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    [choice] = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert chat().choices[0].message.content == choice.message.content
    assert len(chat(n=3).choices) == 3
    parts = [{"role": "user", "content": [{"type": "text", "text": "a loop"}]}]
    assert chat(messages=parts).choices[0].message.content == choice.message.content


@check
def a_streamed_turn():
    whole = chat(logprobs=True, top_logprobs=2)
    chunks = list(chat(logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.object == "chat.completion.chunk" and c.id == chunks[0].id for c in chunks)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    entries = [e for c in pieces if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert entries == whole.choices[0].logprobs.content
    for entry in entries:
        assert len(entry.top_logprobs) == 2 and entry.logprob == entry.top_logprobs[0].logprob
        if not entry.token.startswith("\\x"):
            assert bytes(entry.bytes).decode() == entry.token


@check
def the_client_s_own_stream_reader_puts_a_turn_together():
    free = chat(max_tokens=32).choices[0].message.content
    stop = free[8:11]
    # The reader raises for an answer that ends at its limit: this one ends at a stop string.
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "a loop"}], max_tokens=32, temperature=0, stop=stop
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == free[: free.index(stop)]


@check
def fields_that_change_nothing_are_taken():
    chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto", seed=1, presence_penalty=0)
    chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=4, response_format={"type": "text"}, tools=[])
    complete(user="u", best_of=1, logit_bias={"5": -100})


@check
def refusals_are_the_client_s_own_classes():
    wrong = client.with_options(api_key="not-the-key-of-this-server")
    refused(openai.AuthenticationError, lambda: wrong.models.list(), code="invalid_api_key")
    refused(openai.NotFoundError, lambda: complete(model="gpt-4"), param="model", code="model_not_found", words=["gpt-4", MODEL])
    bad = openai.BadRequestError
    refused(bad, lambda: complete(n=10**9), param="n", words=["1000000000", "128"])
    refused(bad, lambda: complete(temperature=3), param="temperature", words=["3", "2"])
    refused(bad, lambda: complete(max_tokens=10**7), code="context_length_exceeded", words=["10000000", "max_tokens"])
    refused(bad, lambda: complete(prompt="x = 1\n" * 20000), param="prompt", code="context_length_exceeded")
    refused(bad, lambda: complete(best_of=4), param="best_of")
    refused(bad, lambda: complete(extra_body={"temprature": 1}), param="temprature", words=["`temperature`"])
    refused(bad, lambda: complete(prompt=[1, 2, 10**8]), param="prompt", words=["100000000"])
    refused(bad, lambda: complete(suffix="x", echo=True), param="echo")
    refused(bad, lambda: chat(messages=[]), param="messages")
    refused(bad, lambda: chat(messages=[{"role": "boss", "content": "x"}]), param="messages[0].role", words=["boss", "user"])
    refused(bad, lambda: chat(top_logprobs=3), param="top_logprobs")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(bad, lambda: chat(tools=[tool]), param="tools")
    refused(bad, lambda: chat(response_format={"type": "json_object"}), param="response_format")
    refused(openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="x"), code="unknown_url")


@check
def a_full_queue_is_a_rate_limit():
    streams = []
    try:
        for _ in range(500):
            streams.append(complete(max_tokens=1500, stream=True, extra_body={"ignore_eos": True}))
        raise AssertionError("500 streams, and none was refused")
    except openai.RateLimitError as error:
        assert error.code == "queue_full" and "retry in" in error.message, error.message
        assert int(error.response.headers["retry-after"]) >= 1
    finally:
        for stream in streams:
            stream.close()
    # With the client's own retries the next one gets through.
    patient = client.with_options(max_retries=5)
    assert patient.completions.create(model=MODEL, prompt=CODE, max_tokens=2).choices[0].text


@check
def a_reader_that_leaves_early_disturbs_nobody():
    for _ in range(8):
        with complete(max_tokens=1500, stream=True) as stream:
            next(iter(stream))
    assert complete().choices[0].text


failed = 0
for function in CHECKS:
    try:
        function()
        print(f"ok      {function.__name__}")
    except Exception:
        failed += 1
        print(f"FAILED  {function.__name__}\n{traceback.format_exc()}")
print(f"{len(CHECKS) - failed} of {len(CHECKS)} hold (openai {openai.__version__})")
sys.exit(failed != 0)
