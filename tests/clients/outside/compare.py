"""Asks one server the same load twice, once by `hearth bench serve` and once by guidellm, and compares what the two say.

compare.py HEARTH GUIDELLM [--rate 3] [--prompt-tokens 1000] [--seconds 50] [--rounds 3]

In each round `hearth bench serve` first asks a stub, five times as fast, which writes down what it asks and when. That is
guidellm's load: the same times of arrival and the same lengths, but no two prompts of the server's life begin alike, so
its prefix cache serves neither. The server computes on half of the cores: the rest is for who asks, or an interpreter
would slow the server down where a compiled client does not.

Predicted before the first comparison: requests/s differ by less than 1 % (the same arrivals, answers that end counted in
both); guidellm's first token comes 1 to 3 ms later (its interpreter sees a line later; Hearth counts from when a request
was due, guidellm from when its header is sent, and on a server that keeps up the two are the same); the time per token
differs by less than 5 % (both: first text to last, divided by the tokens after the first).

What differs by more is looked for in the server: an interpreter beside it can slow it down, and then both say what is so.
So the server's own clock is read before and after each turn, and the mean first token that each tool saw is held against
the one that the server made in that turn. Predicted before that was measured: 2 to 6 % over the server's own for both, for
the way there and back.
"""

import argparse
import http.server
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

KEY = "a-key-for-the-comparison-0123"
# The figures may differ by this share.
MOST = 0.10
WARMUP = 5
FASTER = 5
ANSWER = 24
FIGURES = ["requests/s", "first token p50, ms", "first token p95, ms", "per token p50, ms"]
# Last: what the tool says over what the server says of the same turn.
OWN = "mean first token over the server's"


def asked(url, path, body=None):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=10) as answer:
        return answer.read()


class Server:
    """A `hearth serve` of the embedded model."""

    def __init__(self, binary, place, threads):
        self.log = open(place / "server.log", "w+")
        arguments = [binary, "serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--console", ""]
        arguments += ["--state-dir", str(place / "state"), "--threads", str(threads)]
        environment = os.environ | {"HEARTH_KEY": KEY, "HEARTH_CONFIG": "/dev/null"}
        self.process = subprocess.Popen(arguments, stderr=self.log, env=environment)
        until = time.monotonic() + 60
        while not (found := re.search(r" at (http:\S+)", self.said())):
            if self.process.poll() is not None or time.monotonic() > until:
                self.end()
                sys.exit(f"error: the server did not start:\n{self.said()}")
            time.sleep(0.1)
        self.url = found[1]
        self.metrics = re.search(r"metrics: (http:\S+)", self.said())[1]

    def first_tokens(self):
        """Seconds to the first token, of how many answers, until now."""
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            text = answer.read().decode()
        of = lambda what: float(re.search(rf"^hearth_time_to_first_token_seconds_{what}\S* (\S+)$", text, re.M)[1])
        return of("sum"), of("count")

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stub:
    """Answers every conversation at once with one word, and keeps what was asked and when."""

    def __init__(self, url):
        rows = self.rows = []
        models = asked(url, "/v1/models")

        class Ask(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, body, kind="application/json"):
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer(models)

            def do_POST(self):
                now = time.monotonic()
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/tokenize":
                    return self.answer(asked(url, self.path, body))
                body = json.loads(body)
                rows.append((now, body["messages"][0]["content"], body["max_tokens"]))
                event = {"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}]}
                self.answer(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")

            def log_message(self, *_):
                pass

        class Listener(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self.listener = Listener(("127.0.0.1", 0), Ask)
        self.url = f"http://127.0.0.1:{self.listener.server_address[1]}"
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()


def run(arguments, seconds, **environment):
    """Runs a program to its end, and ends with what it said if it fails or takes too long."""
    try:
        done = subprocess.run(
            arguments, env=os.environ | environment, timeout=seconds, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
    except subprocess.TimeoutExpired as late:
        sys.exit(f"error: {arguments[0]} did not end within {seconds:.0f} s:\n{(late.stdout or b'')[-3000:]}")
    if done.returncode:
        sys.exit(f"error: {arguments[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def bench(options, url, place, seed, rate, warmup, seconds):
    """`hearth bench serve`; gives its run as it wrote it."""
    kept = place / "hearth.json"
    arguments = [options.hearth, "bench", "serve", "--url", url, "--profile", "chat", "--quick", "--shared", "0"]
    arguments += ["--prompt-tokens", str(options.prompt_tokens), "--output-tokens", str(ANSWER), "--seed", str(seed)]
    arguments += ["--rate", str(rate), "--warmup", f"{warmup}s", "--duration", f"{seconds}s", "-o", str(kept)]
    run(arguments, warmup + seconds + 60, HEARTH_KEY=KEY)
    results = json.loads(kept.read_text())
    return results["server"]["model"], results["runs"][0]


def by_hearth(options, url, place, seed):
    _, found = bench(options, url, place, seed, options.rate, WARMUP, options.seconds)
    times = found["kinds"]["chat"]
    if found["failed"] or found["refused"]:
        sys.exit(f"error: hearth bench was refused: {found['first_failure']}")
    figures = [found["requests_per_s"], times["first_ms"]["p50"], times["first_ms"]["p95"], times["token_ms"]["p50"]]
    return figures, times["first_ms"]["mean"]


def load_of(options, url, place, seed):
    """What `hearth bench serve` asks with this seed, and when, as rows for guidellm."""
    stub = Stub(url)
    whole = WARMUP + options.seconds
    model, _ = bench(options, stub.url, place, seed, options.rate * FASTER, 0, -(-whole // FASTER))
    stub.listener.shutdown()
    # The first one asks what the server can do.
    rows = sorted(stub.rows[1:])
    file = place / "load.jsonl"
    with file.open("w") as out:
        for number, (at, prompt, answer) in enumerate(rows):
            # As long, but of other tokens from the first on.
            prompt = f"# {seed}.{number:05} "[: len(prompt)] + prompt[10:]
            row = {"prompt": prompt, "output_tokens_count": answer, "relative_timestamp": (at - rows[0][0]) * FASTER}
            out.write(json.dumps(row) + "\n")
    return model, file


def by_guidellm(options, url, place, model, load):
    kept, scenario, whole = place / "guidellm.json", place / "scenario.json", WARMUP + options.seconds
    extras = {"temperature": 0}
    spec = {
        "backend": {
            "kind": "openai_http", "target": url, "model": model, "api_key": KEY, "http2": False,
            "request_format": "/v1/chat/completions", "validate_backend": False, "extras": {"body": extras},
        },
        "profile": {"kind": "replay", "schedule_turn": "timestamp", "warmup": {"mode": "duration", "value": WARMUP}},
        "constraints": [{"kind": "max_duration", "seconds": whole}],
        "data": [{"kind": "json_file", "path": str(load)}],
        "data_loader": {"kind": "pytorch", "num_workers": 0},
        "outputs": [{"kind": "json", "path": str(kept)}],
    }
    scenario.write_text(json.dumps({"spec": spec}))
    stand_in = str(Path(__file__).resolve().parent / "stand-in")
    # One process asks, as in Hearth. Each of the next rows is a task that waits for its time, and ten thousand of them,
    # its default, slow its clock: answers are seen late. Nothing is looked for on a model hub.
    run(
        [options.guidellm, "run", "-c", str(scenario), "--disable-console"], whole + 90,
        GUIDELLM__MAX_WORKER_PROCESSES="1", GUIDELLM__MAX_CONCURRENCY="64", PYTHONPATH=stand_in,
        HF_HUB_OFFLINE="1", HF_HOME=str(place / "hub"), TMPDIR=str(place),
    )
    figures = json.loads(kept.read_text())["benchmarks"][0]["metrics"]
    if figures["request_totals"]["errored"]:
        sys.exit(f"error: {figures['request_totals']['errored']} of guidellm's requests failed")
    of = lambda name: figures[name]["successful"]
    first = of("time_to_first_token_ms")
    p50, p95 = first["percentiles"]["p50"], first["percentiles"]["p95"]
    return [of("requests_per_second")["mean"], p50, p95, of("inter_token_latency_ms")["median"]], first["mean"]


def show(name, figures, beside=""):
    print(f"{name:<22}" + "".join(f"{figure:>21}" for figure in figures) + beside, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hearth")
    parser.add_argument("guidellm")
    # A third of what the server can do. Where cores are two threads of one, guidellm's interpreter slows the server, and
    # the nearer the server is to its limit, the longer the queue that this makes.
    parser.add_argument("--rate", type=float, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // 2)
    words = [f"{options.rate:g} requests/s for {options.seconds} s in each round, prompts of about {options.prompt_tokens} tokens"]
    words += [f"answers of about {ANSWER}; the server computes on {threads} of {cores} cores"]
    print(", ".join(words))
    show("", FIGURES, "  the server's mean, over it, load")
    found = {"hearth bench serve": [], "guidellm": []}
    over = {name: [] for name in found}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        server = Server(options.hearth, place, threads)
        try:
            for number in range(options.rounds):
                model, load = load_of(options, server.url, place, number + 1)
                ways = {
                    "hearth bench serve": lambda: by_hearth(options, server.url, place, number + 1),
                    "guidellm": lambda: by_guidellm(options, server.url, place, model, load),
                }
                # In turn first: a machine that grows slower favours neither.
                for name in sorted(ways, reverse=number % 2 == 0):
                    before = os.getloadavg()[0]
                    spent, answers = server.first_tokens()
                    figures, mean = ways[name]()
                    now = server.first_tokens()
                    own = 1000 * (now[0] - spent) / (now[1] - answers)
                    found[name].append(figures)
                    over[name].append(mean / own - 1)
                    beside = f"{own:>10.2f} {over[name][-1]:>+9.1%} {before:>9.2f}"
                    show(name, [f"{figure:.2f}" for figure in figures], beside)
        finally:
            server.end()
    print()
    ours, theirs = ([statistics.median(column) for column in zip(*rounds)] for rounds in found.values())
    show("median, hearth bench", [f"{figure:.2f}" for figure in ours])
    show("median, guidellm", [f"{figure:.2f}" for figure in theirs])
    shares = [their / our - 1 for our, their in zip(ours, theirs)]
    show("guidellm's over ours", [f"{share:+.1%}" for share in shares])
    means = {name: statistics.median(shares) for name, shares in over.items()}
    print("mean first token over the server's own: " + ", ".join(f"{name} {mean:+.1%}" for name, mean in means.items()))
    far = [name for name, share in zip(FIGURES, shares) if abs(share) > MOST]
    far += [f"{OWN}, {name}" for name, mean in means.items() if abs(mean) > MOST]
    if far:
        print(f"\nFAILED  further than {MOST:.0%} apart: {'; '.join(far)}")
        sys.exit(1)
    print(f"\nok      all within {MOST:.0%}")


main()
