"""Draw the state machines from their tables: `python tools/state_diagrams.py` writes docs/diagrams/*.mmd (Mermaid)."""

from __future__ import annotations

from pathlib import Path

from toque.callbacks import health
from toque.calls.phases import STEPS, Phase

DIAGRAMS = Path(__file__).parent.parent / "docs" / "diagrams"


def call_diagram() -> str:
    """The phases of a call. Signals that leave a phase as it is are listed in it; `time` is what `tick` does in the end."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, kind), following in STEPS.items():
        arrows.setdefault((phase, following), []).append(str(kind))
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.CALLING}: first sign"]
    lines += [f"    {phase}: {phase}<br>({', '.join(kinds)})" for (phase, to), kinds in arrows.items() if phase is to]
    lines += [f"    {phase} --> {to}: {', '.join(kinds)}" for (phase, to), kinds in arrows.items() if phase is not to]
    lines += [f"    {phase} --> {Phase.ENDED}: time" for phase in Phase if phase is not Phase.ENDED]
    lines.append(f"    {Phase.ENDED} --> [*]: time")
    return "\n".join(lines) + "\n"


def health_diagram() -> str:
    """A callback's health. Signs that leave a state as it is are listed in it."""
    arrows: dict[tuple[health.State, health.State], list[str]] = {}
    for (state, sign), following in health.STEPS.items():
        arrows.setdefault((state, following), []).append(str(sign))
    lines = ["stateDiagram-v2", f"    [*] --> {health.State.HEALTHY}"]
    lines += [f"    {state}: {state}<br>({', '.join(signs)})" for (state, to), signs in arrows.items() if state is to]
    lines += [f"    {state} --> {to}: {', '.join(signs)}" for (state, to), signs in arrows.items() if state is not to]
    return "\n".join(lines) + "\n"


DRAWN = {"call.mmd": call_diagram, "health.mmd": health_diagram}


def main() -> None:
    """Write every diagram."""
    DIAGRAMS.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWN.items():
        (DIAGRAMS / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
