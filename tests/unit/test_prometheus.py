"""Metric names that dashboards chart: TGI's as they were, vLLM's under a prefix."""

from __future__ import annotations

import pytest

from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats
from mainspring.core.request import Ready
from mainspring.server.telemetry.prometheus import Metrics, RequestRecord
from tests.support.tgi_rows import tgi

READY = Ready(100, 1000, 16, 64, 8, "sim", "machine", "float32")
STATS = Stats(
    running=3,
    waiting=2,
    blocks_used=16,
    blocks_total=64,
    prefix_queries=40,
    prefix_hits=10,
    draft_rows=9,
    draft_tokens=30,
    accepted_tokens=21,
)
RECORD = RequestRecord(
    prompt_tokens=5,
    generated_tokens=6,
    max_tokens=7,
    total_seconds=1.0,
    validation_seconds=0.1,
    queue_seconds=0.2,
    inference_seconds=0.6,
    decode_seconds=0.4,
    finish_reasons=["stop", "length"],
)


def samples(metrics: Metrics) -> dict[str, float]:
    lines = [line for line in metrics.exposition().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@tgi(
    "2.1 tgi_request_count",
    "2.1 tgi_request_success",
    "2.1 tgi_request_failure",
    "2.1 tgi_queue_size",
    "2.1 tgi_batch_current_size",
    "2.1 tgi_batch_current_max_tokens",
    "2.1 tgi_batch_max_total_tokens",
    "2.1 tgi_request_duration",
    "2.1 tgi_request_validation_duration",
    "2.1 tgi_request_queue_duration",
    "2.1 tgi_request_inference_duration",
    "2.1 tgi_request_mean_time_per_token_duration",
    "2.1 tgi_request_generated_tokens",
    "2.1 tgi_request_input_length",
    "2.1 tgi_request_max_new_tokens",
    "2.1 tgi_request_skipped_tokens",
)
def test_names_of_tgi() -> None:
    metrics = Metrics("m", lambda: (STATS, READY), vllm_names=False)
    metrics.count("tgi_request_count")
    metrics.finished(RECORD)
    metrics.failed(ErrorKind.INVALID)
    metrics.failed(ErrorKind.NUMERICAL)
    found = samples(metrics)
    expected = {
        "tgi_request_count": 1,
        "tgi_request_success": 1,
        'tgi_request_failure{err="validation"}': 1,
        'tgi_request_failure{err="generation"}': 1,
        "tgi_queue_size": 2,
        "tgi_batch_current_size": 3,
        "tgi_batch_current_max_tokens": 256,
        "tgi_batch_max_total_tokens": 1024,
        "tgi_request_duration_sum": 1.0,
        "tgi_request_validation_duration_sum": 0.1,
        "tgi_request_queue_duration_sum": 0.2,
        "tgi_request_inference_duration_sum": 0.6,
        "tgi_request_mean_time_per_token_duration_sum": 0.6 / 6,
        "tgi_request_input_length_sum": 5,
        "tgi_request_generated_tokens_sum": 6,
        "tgi_request_max_new_tokens_sum": 7,
        "tgi_request_skipped_tokens_sum": 21,
        "tgi_request_skipped_tokens_count": 9,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert 'tgi_request_duration_bucket{le="0.00015"}' in found


def test_names_of_vllm_under_both_prefixes() -> None:
    metrics = Metrics("m", lambda: (STATS, READY), vllm_names=True)
    metrics.first_token(0.5)
    metrics.token_gap(0.01)
    metrics.finished(RECORD)
    found = samples(metrics)
    for prefix in ("mainspring_", "vllm:"):
        labels = '{engine="0",model_name="m"}'
        expected = {
            f"{prefix}num_requests_running{labels}": 3,
            f"{prefix}num_requests_waiting{labels}": 2,
            f"{prefix}kv_cache_usage_perc{labels}": 0.25,
            f"{prefix}prefix_cache_queries_total{labels}": 40,
            f"{prefix}prefix_cache_hits_total{labels}": 10,
            f"{prefix}num_preemptions_total{labels}": 0,
            f"{prefix}spec_decode_num_drafts_total{labels}": 9,
            f"{prefix}spec_decode_num_draft_tokens_total{labels}": 30,
            f"{prefix}spec_decode_num_accepted_tokens_total{labels}": 21,
            f"{prefix}prompt_tokens_total{labels}": 0,
            f"{prefix}time_to_first_token_seconds_sum{labels}": 0.5,
            f"{prefix}inter_token_latency_seconds_sum{labels}": 0.01,
            f"{prefix}e2e_request_latency_seconds_sum{labels}": 1.0,
            f"{prefix}request_prefill_time_seconds_sum{labels}": pytest.approx(0.2),
            f"{prefix}request_decode_time_seconds_sum{labels}": 0.4,
            f"{prefix}request_time_per_output_token_seconds_sum{labels}": pytest.approx(0.2),
            f"{prefix}request_params_max_tokens_sum{labels}": 7,
            f"{prefix}request_params_n_sum{labels}": 2,
            f"{prefix}request_queue_time_seconds_sum{labels}": 0.2,
            f"{prefix}request_inference_time_seconds_sum{labels}": 0.6,
            f"{prefix}request_prompt_tokens_sum{labels}": 5,
            f"{prefix}request_generation_tokens_sum{labels}": 6,
            f"{prefix}generation_tokens_total{labels}": 0,
            f"{prefix}nan_rows_total{labels}": 0,
            f"{prefix}requests_aborted_total{labels}": 0,
            f'{prefix}request_success_total{{engine="0",finished_reason="stop",model_name="m"}}': 1,
            f'{prefix}cache_config_info{{block_size="16",num_gpu_blocks="64"}}': 1,
        }
        assert {name: found.get(name) for name in expected} == expected
    assert found["mainspring_event_loop_lag_seconds_count"] == 0
    assert found[f"vllm:gpu_cache_usage_perc{labels}"] == 0.25
    assert found[f"vllm:gpu_prefix_cache_hits_total{labels}"] == 10
    assert f"mainspring_gpu_cache_usage_perc{labels}" not in found


def test_two_servers_in_one_process_do_not_share_numbers() -> None:
    first, second = (Metrics("m", lambda: None, vllm_names=False) for _ in range(2))
    first.count("tgi_request_count")
    assert samples(first)["tgi_request_count"] == 1
    assert samples(second)["tgi_request_count"] == 0
    assert "tgi_queue_size" not in samples(second)
