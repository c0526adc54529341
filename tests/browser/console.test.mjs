// The console in Debian's Chromium: what somebody sees and does there, by day and by night, wide and narrow, without
// scripts, under load, and when the server is gone. Pictures of all of it are in target/browser.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { KEY, Server, enter, launch, shot } from "./hearth.mjs";

let browser;
let server;

before(async () => {
  browser = await launch();
  server = await Server.start();
});

after(async () => {
  await browser?.close();
  server?.stop();
});

const number = async (page, lane) =>
  Number((await page.locator(`[data-live=${lane}] .number`).textContent()).replace(/[^\d.]/g, ""));
const ticks = (page, count) =>
  page.waitForFunction((n) => Number(document.documentElement.dataset.ticks ?? 0) >= n, count);

/** Nothing sticks out to the right, and nothing went wrong. */
async function sound(page) {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, "the page is wider than the window");
  assert.deepEqual(page.wrongs, []);
}

test("an empty server says so", async () => {
  const page = await enter(browser, server);
  await ticks(page, 2);
  assert.match(await page.textContent("[data-live=troubles]"), /Nothing went wrong/);
  assert.match(await page.textContent("[data-live=banners]"), /ember-demo is the small built-in model/);
  await shot(page, "empty");
  await sound(page);
  await page.context().close();
});

test("under load the lanes move, by day, by night and on a telephone", async () => {
  const stop = server.load();
  try {
    for (const [name, options] of [
      ["light", { colorScheme: "light" }],
      ["dark", { colorScheme: "dark" }],
      ["narrow", { viewport: { width: 390, height: 844 } }],
      ["narrow-dark", { viewport: { width: 390, height: 844 }, colorScheme: "dark" }],
    ]) {
      const page = await enter(browser, server, options);
      await ticks(page, 3);
      assert.ok((await number(page, "tokens")) > 0, "tokens flow");
      assert.ok((await page.getAttribute("[data-strip=tokens] .curve", "d")).length > 20, "the strip is drawn");
      await shot(page, name);
      const hidden = await page.evaluate(() => {
        const nav = document.querySelector("nav");
        return nav.scrollWidth - nav.clientWidth;
      });
      assert.equal(hidden, 0, "every page can be reached without scrolling the bar");
      await sound(page);
      await page.context().close();
    }
  } finally {
    await stop();
  }
});

test("one pointer reads all lanes at the same moment", async () => {
  const page = await enter(browser, server);
  await ticks(page, 1);
  const box = await page.locator("[data-strip=kv]").boundingBox();
  await page.mouse.move(box.x + box.width - 3, box.y + 20);
  const words = await page.locator(".strip .read").allTextContents();
  assert.equal(words.length, 4);
  for (const text of words) assert.match(text, / ago$/);
  await page.context().close();
});

test("a trouble is shown with the id that GitLab's log has", async () => {
  await server.complete({ temperature: 99 });
  const answer = await fetch(`${server.api}/v1/models/none`, {
    headers: { authorization: `Bearer ${KEY}`, "x-request-id": "01JTROUBLE" },
  });
  assert.equal(answer.status, 404);
  const page = await enter(browser, server);
  await page.waitForSelector("text=01JTROUBLE");
  await shot(page, "troubles");
  await sound(page);
  await page.context().close();
});

test("the playground chats and fills gaps, and times every token", async () => {
  const page = await enter(browser, server, { colorScheme: "dark" });
  await page.click("nav >> text=Playground");
  await page.fill("#question", "Write a function that adds");
  await page.press("#question", "Control+Enter");
  await page.waitForFunction(() => document.querySelector("#sums").textContent.includes("prompt"));
  assert.ok((await page.locator("#turns .assistant .piece").count()) > 0);
  assert.ok((await page.locator("#bars i").count()) > 0);
  assert.match(await page.textContent("#sums"), /tokens? in .* the first after \d+ ms/);
  await shot(page, "chat");

  await page.click("#tab-fill");
  await page.fill("#prefix", "import os\nimport sys\n\ndef main(");
  await page.fill("#suffix", "");
  await page.fill("#temperature", "0");
  await page.click("text=Fill the gap");
  await page.waitForFunction(() => document.querySelector("#middle").textContent.length > 0);
  await page.waitForFunction(() => document.querySelector("#stop").hidden);
  await shot(page, "fill");

  await page.fill("#most", "100000");
  await page.click("text=Fill the gap");
  await page.waitForSelector("#middle .failed");
  assert.match(await page.textContent("#middle .failed"), /context is 2048 tokens/);
  await shot(page, "refused");
  // A refusal is an answer that the browser also notes; nothing else may be.
  assert.deepEqual(page.wrongs.filter((text) => !text.includes("status of 400")), []);
  await page.context().close();
});

test("an answer can be stopped", async () => {
  const page = await enter(browser, server);
  await page.goto(`${server.console}/playground`);
  await page.fill("#most", "1500");
  await page.fill("#temperature", "1");
  await page.fill("#question", "a long one");
  await page.click("#ask button.primary");
  await page.waitForSelector("#turns .assistant .piece");
  if (await page.isVisible("#stop")) await page.click("#stop");
  await page.waitForSelector("#stop", { state: "hidden" });
  await page.context().close();
});

test("a key is made, shown once, and revoked", async () => {
  const page = await enter(browser, server);
  await page.click("nav >> text=Keys");
  await page.fill("[name=name]", "browser-made");
  await page.fill("[name=owner]", "platform team");
  await page.click("text=Make the key");
  const key = await page.inputValue(".secret");
  assert.match(key, /^hearth_/);
  await shot(page, "keys");
  await page.goto(`${server.console}/keys`);
  assert.equal(await page.locator(".secret").count(), 0);
  assert.ok(!(await page.content()).includes(key));
  await page.click("text=Revoke…");
  await page.click("button:has-text('Revoke browser-made')");
  await page.waitForSelector(".told:has-text('browser-made is revoked')");
  await sound(page);
  await page.context().close();
});

test("the doctor examines", async () => {
  const page = await enter(browser, server);
  await page.click("nav >> text=Doctor");
  await page.click("text=Check now");
  await page.waitForSelector(".findings", { timeout: 60_000 });
  assert.match(await page.textContent(".summary"), /\d+ checks/);
  await shot(page, "doctor");
  await sound(page);
  await page.context().close();
});

test("without scripts everything is there but charts and playground", async () => {
  const page = await enter(browser, server, { javaScriptEnabled: false });
  assert.match(await page.textContent("[data-live=facts]"), /ready/);
  await page.click("text=Reload settings");
  assert.match(await page.textContent(".told"), /Reloaded/);
  await page.click("text=Log prompts…");
  await page.click("button:has-text('Log prompts')");
  assert.match(await page.textContent("[data-live=banners]"), /Prompts and answers go into the log/);
  await shot(page, "without-scripts");
  await page.click("text=Stop logging prompts");
  await page.goto(`${server.console}/playground`);
  assert.match(await page.textContent("main"), /needs JavaScript/);
  await page.click("text=Sign out");
  await page.waitForSelector("text=hearth console");
  await shot(page, "door");
  await page.fill("#key", "not-the-key");
  await page.click("text=Sign in");
  assert.match(await page.textContent(".told"), /not a key of this server/);
  await page.fill("#key", KEY);
  await page.click("text=Sign in");
  await page.waitForSelector(".lanes");
  await page.context().close();
});

test("a server that is gone is not shown as one that is there", async () => {
  const mortal = await Server.start();
  const page = await enter(browser, mortal, { colorScheme: "dark" });
  await ticks(page, 1);
  mortal.verb("drain");
  await page.waitForSelector(".banner.warn:has-text('Draining')");
  await shot(page, "draining");
  mortal.kill();
  await page.waitForSelector(".banner.fail:has-text('does not answer')");
  await shot(page, "gone");
  mortal.stop();
  await page.context().close();
});
