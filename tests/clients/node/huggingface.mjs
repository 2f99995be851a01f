// The npm package @huggingface/inference: `node huggingface.mjs BASE_URL` prints what it got as one JSON object.
// Its textGeneration goes to /v1/completions, whatever its types say of the stream.
import { InferenceClient } from "@huggingface/inference";

const [url] = process.argv.slice(2);
const client = new InferenceClient(undefined, { endpointUrl: url });
const messages = [{ role: "user", content: "hi" }];
const parameters = { max_new_tokens: 6, temperature: 0 };

async function errorOf(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.httpResponse?.status, body: error.httpResponse?.body };
  }
}

const generated = await client.textGeneration({ inputs: "hi", parameters });

const tokens = [];
for await (const event of client.textGenerationStream({ inputs: "hi", parameters })) {
  tokens.push(event);
}

const chat = await client.chatCompletion({ messages, max_tokens: 6, temperature: 0 });

const chunks = [];
for await (const chunk of client.chatCompletionStream({ messages, max_tokens: 6, temperature: 0 })) {
  chunks.push(chunk);
}

console.log(
  JSON.stringify({
    generated,
    tokens: tokens.map((event) => event.choices[0].text),
    last: tokens.at(-1).choices[0],
    chat: chat.choices[0],
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""),
    errors: {
      temperature: await errorOf(() => client.textGeneration({ inputs: "hi", parameters: { temperature: -1 } })),
      chat: await errorOf(() => client.chatCompletion({ messages, max_tokens: 1000000 })),
    },
  }),
);
