"""The rows of Text Generation Inference's behaviour (3.3), each named where a test covers it.

`@tgi("1.2 top_k")` on a test, or `marks=tgi(...)` on one of its cases, says which rows it holds. The table in
docs/tgi-compatibility.md is made from these marks, so a row without a test is seen there. Numbers are those of the
sections: 1.1 routes, 1.2 parameters, 1.3 `/generate`, 1.4 `/generate_stream`, 1.5 chat, 1.6 completions, 1.7 other
generation routes, 1.8 other answers, 1.9 errors, 2.1 metrics, 2.3 headers, 3 flags.
"""

from __future__ import annotations

import pytest

from mainspring.core.errors import unknown

_SECTIONS: dict[str, str] = {
    "1.1": (
        "POST /, POST /generate, POST /generate_stream, POST /v1/chat/completions, POST /v1/completions, "
        "POST /invocations, POST /vertex, POST /tokenize, POST /chat_tokenize, GET /, GET /health, GET /ping, "
        "GET /info, GET /metrics, GET /v1/models, GET /docs, GET /api-doc/openapi.json, auth, cors, payload limit, "
        "malformed body"
    ),
    "1.2": (
        "best_of, temperature, repetition_penalty, frequency_penalty, top_k, top_p, typical_p, do_sample, "
        "max_new_tokens, return_full_text, stop, truncate, watermark, details, decoder_input_details, seed, "
        "top_n_tokens, grammar, adapter_id, inputs, input length, order of checks, long generations, images"
    ),
    "1.3": "body, details, tokens, prefill, top_tokens, best_of_sequences, finish_reason",
    "1.4": "events, last event, details, keep-alive, refusals, errors in the stream, headers",
    "1.5": (
        "body, model, messages, frequency_penalty, presence_penalty, logit_bias, logprobs, top_logprobs, max_tokens, "
        "n, stop, seed, temperature, top_p, tools, tool_choice, tool_prompt, response_format, stream_options, stream, "
        "unknown fields, prefix completion, usage, finish_reason, id, template, errors in the stream"
    ),
    "1.6": (
        "body, prompt, batch size, max_tokens, temperature, top_p, stream, seed, suffix, repetition_penalty, "
        "frequency_penalty, stop, choices, finish_reason, usage"
    ),
    "1.7": "compat, compat stream, invocations, invocations stream, vertex",
    "1.8": "models, info, health",
    "1.9": (
        "validation, template_error, missing_template_variable, tool_error, generation, overloaded, "
        "incomplete_generation, incomplete_generation_stream, stream_serialization_error, healthcheck, "
        "401, 413, 415, 400, 422"
    ),
    "2.1": (
        "tgi_request_count, tgi_request_success, tgi_request_failure, tgi_batch_inference_count, "
        "tgi_batch_inference_success, tgi_batch_inference_failure, tgi_batch_concat, tgi_queue_size, "
        "tgi_batch_current_size, tgi_batch_current_max_tokens, tgi_batch_max_total_tokens, tgi_request_duration, "
        "tgi_request_validation_duration, tgi_request_queue_duration, tgi_request_inference_duration, "
        "tgi_request_mean_time_per_token_duration, tgi_request_generated_tokens, tgi_request_input_length, "
        "tgi_request_max_new_tokens, tgi_request_skipped_tokens, tgi_batch_next_size, tgi_batch_inference_duration, "
        "tgi_batch_forward_duration, tgi_batch_decode_duration, tgi_batch_filter_duration, tgi_batch_concat_duration"
    ),
    "2.3": (
        "x-compute-type, x-compute-time, x-compute-characters, x-total-time, x-validation-time, x-queue-time, "
        "x-inference-time, x-time-per-token, x-prompt-tokens, x-generated-tokens, X-Accel-Buffering"
    ),
    "3": (
        "--model-id, --revision, --validation-workers, --sharded, --num-shard, --quantize, --speculate, --dtype, "
        "--kv-cache-dtype, --trust-remote-code, --max-concurrent-requests, --max-best-of, --max-stop-sequences, "
        "--max-top-n-tokens, --max-input-tokens, --max-input-length, --max-total-tokens, --waiting-served-ratio, "
        "--max-batch-prefill-tokens, --max-batch-total-tokens, --max-waiting-tokens, --max-batch-size, --cuda-graphs, "
        "--hostname, --port, --prometheus-port, --shard-uds-path, --master-addr, --master-port, "
        "--huggingface-hub-cache, --weights-cache-override, --disable-custom-kernels, --cuda-memory-fraction, "
        "--rope-scaling, --rope-factor, --json-output, --otlp-endpoint, --otlp-service-name, --cors-allow-origin, "
        "--api-key, --watermark-gamma, --watermark-delta, --ngrok, --ngrok-authtoken, --ngrok-edge, "
        "--tokenizer-config-path, --disable-grammar-support, --env, --max-client-batch-size, --lora-adapters, "
        "--usage-stats, --payload-limit, --enable-prefill-logprobs, --graceful-termination-timeout, "
        "--max-image-fetch-size, environment"
    ),
}

ROWS: tuple[str, ...] = tuple(f"{number} {name}" for number, names in _SECTIONS.items() for name in names.split(", "))
"""Every row, in order: the section's number and the row's name."""

_KNOWN = frozenset(ROWS)


def tgi(*rows: str) -> pytest.MarkDecorator:
    """The mark `tgi` with the rows that a test covers. Raises ValueError for a row that is not in `ROWS`."""
    for row in rows:
        if row not in _KNOWN:
            raise ValueError(unknown("row", row, ROWS))
    return pytest.mark.tgi(*rows)
