"""What each measurement should reach, beside the names of its figures; for the tables that people read."""

GOALS: dict[str, dict[str, str]] = {
    "deliver": {"ratio": "≥ 0.28", "cpu_us_per_delivery": "≤ 28", "tls_ratio": "≥ 0.5"},
    "latency": {"missing": "0", "latency_p50_ms": "≤ 3", "latency_p99_ms": "≤ 15"},
    "isolation": {"p99_ratio": "≤ 1.5", "rate_ratio": "≥ 0.9", "missing": "0"},
    "backlog": {
        "memory_growth_mib": "≤ 64",
        "rate_ratio": "≥ 0.9",
        "restart_to_fed_s": "≤ 3",
        "restart_to_waiting_s": "≤ 3",
        "drain_ratio": "≥ 0.5",
        "missing": "0",
        "disordered": "0",
    },
    "ami": {"lost": "0", "wrong": "0", "connections": "1"},
    "intake": {
        "messages_per_s": "≥ 30,000",
        "http_batch_statuses_per_s": "≥ 60,000",
        "http_single_requests_per_s": "≥ 10,000",
    },
}
