// The npm package openai: `node openai.mjs BASE_URL MODEL` prints what it got as one JSON object.
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const request = { model, messages, max_tokens: 6, temperature: 0 };

async function errorOf(fields) {
  try {
    await client.chat.completions.create({ ...request, ...fields });
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
}

const chat = await client.chat.completions.create(request);

const chunks = [];
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...request, ...options })) {
  chunks.push(chunk);
}

const runner = client.chat.completions.stream({ ...request, max_tokens: 200, stop: ["9"] });
const accumulated = await runner.finalChatCompletion();

const sampled = await client.chat.completions.create({ ...request, temperature: 1, n: 2, seed: 1 });
const logprobs = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 2 });
const stopped = await client.completions.create({ model, prompt: "hi", max_tokens: 200, stop: ["9", "8"] });
const biased = await client.completions.create({
  model,
  prompt: "hi",
  max_tokens: 2,
  logit_bias: { 400: 100 },
});
const models = [];
for await (const entry of client.models.list()) {
  models.push(entry.id);
}

console.log(
  JSON.stringify({
    chat: chat.choices[0],
    usage: chat.usage,
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
    streamedUsage: chunks.at(-1).usage,
    accumulated: accumulated.choices[0],
    sampled: sampled.choices.map((choice) => choice.message.content),
    logprobs: logprobs.choices[0].logprobs.content,
    stopped: stopped.choices[0],
    biased: biased.choices[0].text,
    models,
    errors: {
      tooLong: await errorOf({ max_tokens: 1000000 }),
      tools: await errorOf({ tools: [{ type: "function", function: { name: "two words" } }] }),
      streamed: await errorOf({ stream: true, temperature: -1 }),
      otherModel: await errorOf({ model: "gpt-4" }),
    },
  }),
);
