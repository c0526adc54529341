// A running `hearth serve` with a console, and a browser in front of it.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const BINARY = process.env.HEARTH ?? "target/debug/hearth";
const SHOTS = process.env.SHOTS ?? "target/browser";
export const KEY = "a-key-for-the-browser-0123";

export class Server {
  static async start(flags = []) {
    const server = new Server();
    server.state = mkdtempSync(join(tmpdir(), "hearth-browser-"));
    const listen = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--console", "127.0.0.1:0"];
    server.child = spawn(BINARY, ["serve", ...listen, "--state-dir", server.state, ...flags], {
      env: { HEARTH_KEY: KEY },
      stdio: ["ignore", "ignore", "pipe"],
    });
    server.said = "";
    await new Promise((ready, failed) => {
      server.child.stderr.setEncoding("utf8").on("data", (text) => {
        server.said += text;
        if (server.said.includes("  key: ")) ready();
      });
      server.child.on("exit", () => failed(new Error(server.said)));
    });
    server.api = server.said.match(/ at (http:\/\/\S+)/)[1];
    server.console = server.said.match(/console: (http:\/\/[^\s/]+)/)[1];
    return server;
  }

  verb(...words) {
    return execFileSync(BINARY, [...words, "--state-dir", this.state], { stdio: ["ignore", "pipe", "ignore"] })
      .toString()
      .trim();
  }

  complete(body) {
    return fetch(`${this.api}/v1/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${KEY}`, "content-type": "application/json" },
      body: JSON.stringify({ model: "ember-demo", prompt: "def main(", max_tokens: 64, ...body }),
    });
  }

  /** Requests, some at a time, until it is told to stop. */
  load(streams = 8) {
    let on = true;
    const one = async () => {
      while (on) await (await this.complete({ prompt: `x${Math.random()} = ` })).text();
    };
    const all = Promise.all(Array.from({ length: streams }, one));
    return () => ((on = false), all);
  }

  kill() {
    this.child.kill("SIGKILL");
  }

  stop() {
    this.child.kill("SIGKILL");
    rmSync(this.state, { recursive: true, force: true });
  }
}

export const launch = () => chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });

/** A page that is signed in. What it logs as an error, or asks of another host, is kept in `page.wrongs`. */
export async function enter(browser, server, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.wrongs = [];
  page.on("console", (message) => message.type() === "error" && page.wrongs.push(message.text()));
  page.on("pageerror", (error) => page.wrongs.push(error.message));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin !== server.console && url.protocol !== "data:") page.wrongs.push(`asked ${url.origin}`);
  });
  await page.goto(server.verb("console"));
  await page.waitForURL(`${server.console}/`);
  return page;
}

/** A picture to look at. */
export async function shot(page, name) {
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}
