#!/usr/bin/env python3
"""Writes hearth.json, the dashboard, from the list of its panels: packaging/grafana/make.py > packaging/grafana/hearth.json"""
import json
import sys

WHERE = 'instance=~"$instance"'
MODEL = 'instance=~"$instance",model=~"$model"'


def quantile(share, metric):
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{MODEL}}}[$__rate_interval])))"


def rate(metric, by, where=MODEL):
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


# Title, unit, width of 24, kind, and what is drawn: (legend, expression).
PANELS = [
    ("Ready engines", "none", 4, "stat", [("", f"sum(hearth_engine_up{{{MODEL}}})")]),
    ("Tokens a second", "none", 5, "stat", [("", f"sum(rate(hearth_generated_tokens_total{{{MODEL}}}[1m]))")]),
    ("Running", "none", 5, "stat", [("", f"sum(hearth_requests_running{{{MODEL}}})")]),
    ("Queued", "none", 5, "stat", [("", f"sum(hearth_queue_depth{{{MODEL}}})")]),
    ("First token, p95", "s", 5, "stat", [("", quantile(0.95, "hearth_time_to_first_token_seconds"))]),
    ("Tokens a second", "none", 12, "timeseries", [
        ("{{model}} answers", rate("hearth_generated_tokens_total", "model")),
        ("{{model}} prompts", rate("hearth_prompt_tokens_total", "model")),
    ]),
    ("First token", "s", 12, "timeseries", [
        ("p50", quantile(0.5, "hearth_time_to_first_token_seconds")),
        ("p95", quantile(0.95, "hearth_time_to_first_token_seconds")),
        ("p99", quantile(0.99, "hearth_time_to_first_token_seconds")),
    ]),
    ("Requests", "none", 12, "timeseries", [
        ("{{model}} running", f"sum by (model) (hearth_requests_running{{{MODEL}}})"),
        ("{{model}} queued", f"sum by (model) (hearth_queue_depth{{{MODEL}}})"),
    ]),
    ("Between tokens and in the queue", "s", 12, "timeseries", [
        ("between tokens p50", quantile(0.5, "hearth_inter_token_seconds")),
        ("between tokens p95", quantile(0.95, "hearth_inter_token_seconds")),
        ("queue p95", quantile(0.95, "hearth_queue_wait_seconds")),
    ]),
    ("Keys and values in use", "percentunit", 8, "timeseries", [("{{model}}", f"hearth_kv_usage_ratio{{{MODEL}}}")]),
    ("Prompt tokens from the cache", "percentunit", 8, "timeseries", [
        ("{{model}}", f"{rate('hearth_prefix_cache_hit_tokens_total', 'model')} / "
                      f"{rate('hearth_prefix_cache_query_tokens_total', 'model')}"),
    ]),
    ("Sequences in a step, mean", "none", 8, "timeseries", [
        ("{{model}}", f"{rate('hearth_batch_size_sum', 'model')} / {rate('hearth_batch_size_count', 'model')}"),
    ]),
    ("Answers by status", "reqps", 12, "timeseries", [("{{status}}", rate("hearth_requests_total", "status", WHERE))]),
    ("Answers by route", "reqps", 12, "timeseries", [("{{route}}", rate("hearth_requests_total", "route", WHERE))]),
    ("Connections refused or ended at the door", "none", 12, "timeseries", [
        ("{{reason}}", rate("hearth_connections_refused_total", "reason", WHERE)),
    ]),
    ("Connections", "none", 12, "timeseries", [
        ("{{instance}}", f"hearth_connections_open{{{WHERE}}}"),
        ("{{instance}} at most", f"hearth_connections_limit{{{WHERE}}}"),
    ]),
    ("Failed steps and preemptions", "none", 8, "timeseries", [
        ("{{model}} failed steps", f"increase(hearth_failed_steps_total{{{MODEL}}}[$__rate_interval])"),
        ("{{model}} preemptions", f"increase(hearth_preemptions_total{{{MODEL}}}[$__rate_interval])"),
    ]),
    ("Upstreams", "reqps", 8, "timeseries", [
        ("{{upstream}}", rate("hearth_upstream_requests_total", "upstream", WHERE)),
        ("{{upstream}} failed", rate("hearth_upstream_failures_total", "upstream", WHERE)),
    ]),
    ("GPU temperature", "celsius", 8, "timeseries", [("GPU {{gpu}}", f"hearth_gpu_temperature_celsius{{{WHERE}}}")]),
    ("GPU power", "watt", 8, "timeseries", [("GPU {{gpu}}", f"hearth_gpu_power_watts{{{WHERE}}}")]),
    ("GPU held back", "none", 8, "timeseries", [
        ("GPU {{gpu}} {{reason}}", f"hearth_gpu_throttled{{{WHERE}}} > 0"),
    ]),
    ("GPU memory in use", "percentunit", 8, "timeseries", [
        ("GPU {{gpu}}", f"hearth_gpu_memory_used_bytes{{{WHERE}}} / hearth_gpu_memory_bytes{{{WHERE}}}"),
    ]),
    ("Age of GitLab's keys", "s", 8, "timeseries", [("{{instance}}", f"hearth_gitlab_keys_age_seconds{{{WHERE}}}")]),
]


def variable(name, query):
    return {
        "name": name, "label": name, "type": "query", "query": query, "definition": query, "refresh": 2,
        "includeAll": True, "multi": True, "current": {"text": "All", "value": "$__all"},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
    }


def panels():
    x = y = 0
    for number, (title, unit, width, kind, targets) in enumerate(PANELS, 1):
        height = 4 if kind == "stat" else 8
        if x + width > 24:
            x, y = 0, y + last
        last = height
        yield {
            "id": number, "title": title, "type": kind,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
            if kind == "timeseries" else {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"},
            "targets": [
                {"refId": chr(65 + i), "expr": expr, "legendFormat": legend}
                for i, (legend, expr) in enumerate(targets)
            ],
        }
        x += width


json.dump({
    "uid": "hearth", "title": "Hearth", "tags": ["hearth"], "schemaVersion": 39, "version": 1, "editable": True,
    "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
    "templating": {"list": [
        {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"},
        variable("instance", "label_values(hearth_build_info, instance)"),
        variable("model", "label_values(hearth_engine_up, model)"),
    ]},
    "panels": list(panels()),
}, sys.stdout, indent=1)
print()
