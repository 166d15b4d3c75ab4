"""Plans: their whole text for every example, as golden files, and one whole module for each family and backend; what
leaves loops; what becomes one product.

`python tests/test_plan.py --update` writes the golden files anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnc.pipeline import compile_source, module_text
from rnnc.plan import Loop, Plan
from rnnc.show import expr_text
from rnnc.show_plan import plan_text
from rnnc.source import Source

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.rnn"))
PLANS = ROOT / "tests" / "plans"


# One of each family and backend; a version of rnnc stands in the head.
MODULES = [("mingru", "triton")]


def generated(stem: str, target: str) -> str:
    source = Source(f"{stem}.rnn", (ROOT / "examples" / f"{stem}.rnn").read_text(encoding="utf-8"))
    return module_text(compile_source(source), source, target)


def planned(text: str) -> Plan:
    (made,) = compile_source(Source("test.rnn", text))
    assert made.plan is not None
    return made.plan


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_plan(path: Path) -> None:
    golden = (PLANS / f"{path.stem}.plan").read_text(encoding="utf-8")
    assert plan_text(planned(path.read_text(encoding="utf-8"))) == golden


@pytest.mark.parametrize(("stem", "target"), MODULES)
def test_module(stem: str, target: str) -> None:
    """The text of a module, so that a change of it is seen in review."""
    assert generated(stem, target) == (PLANS / f"{stem}_{target}.py.txt").read_text(encoding="utf-8")


def test_what_needs_no_state_leaves_the_loop() -> None:
    plan = planned((ROOT / "examples" / "lstm.rnn").read_text(encoding="utf-8"))
    (step,) = plan.steps
    assert isinstance(step, Loop)
    assert [expr_text(e) for e in step.hoisted] == ["linear(x -> H, P)"] * 4
    # A sum with each of these would be a pass over all tokens.
    assert [expr_text(e) for e in step.fixed] == ["f_1_bias", "i_1_bias", "z_1_bias", "o_1_bias"]


def test_an_outer_product_stays_in_the_loop() -> None:
    plan = planned((ROOT / "examples" / "gateddeltanet.rnn").read_text(encoding="utf-8"))
    (step,) = plan.steps
    assert isinstance(step, Loop)
    assert all(not {"K", "V"} <= set(e.dims) for e in step.hoisted)


def test_maps_of_one_value_are_one_product() -> None:
    text = (ROOT / "examples" / "lstm.rnn").read_text(encoding="utf-8")
    (made,) = compile_source(Source("lstm.rnn", text))
    module = module_text([made], Source("lstm.rnn", text))
    equations = module[module.index("    def _equations(\n") : module.index("    def _fused(\n")]
    assert equations.count("_project(") == 1
    step = module[module.index("def _LSTM_c_h_step(") : module.index("def _LSTM_c_h_pack(")]
    assert step.count("_project(") == 1 and "_linear(" not in step


def test_generated_modules_are_formatted(tmp_path: Path) -> None:
    for path in EXAMPLES:
        for target in ("triton", "torch"):
            (tmp_path / f"{path.stem}_{target}.py").write_text(generated(path.stem, target), encoding="utf-8")
    ruff = Path(sys.executable).with_name("ruff")
    command = [ruff, "format", "--isolated", "--line-length", "120", "--check", tmp_path]
    assert subprocess.run(command, capture_output=True).returncode == 0
    command = [ruff, "check", "--isolated", "--select", "F,E7,E9,B", "--ignore", "B905", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_kernels_have_nothing_unused(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    for path in EXAMPLES:
        kernels = generated(path.stem, "triton").split("@triton.jit")[1:]
        own = [k.split("\n\n\n")[0] for k in kernels if not k.split("def ", 1)[1].startswith("_tl_")]
        (tmp_path / f"{path.stem}.py").write_text("\n\n\n".join(k[k.index("def ") :] for k in own), encoding="utf-8")
    command = [ruff, "check", "--isolated", "--select", "F841,ARG", tmp_path]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(("count", "length"), [(40, 2), (8, 14), (1, 130)])
def test_many_states_and_long_names(count: int, length: int, tmp_path: Path) -> None:
    """Names of several states together are kept short; what cannot be broken is left as it is."""
    names = [f"{'s' * length}{i}" for i in range(count)]
    text = f"cell C\ndim D = 4\ninput x[D]\nstate {', '.join(f'{n}[D]' for n in names)}\n"
    text += "".join(
        f"{n}[t] = tanh({p}[t-1] + x * {n}[t-1])\n" for n, p in zip(names, names[-1:] + names, strict=False)
    )
    source = Source("test.rnn", f"{text}output {names[0]}[t]\n")
    for target in ("triton", "torch"):
        made = module_text(compile_source(source), source, target)
        compile(made, target, "exec")
        if count > 1:
            (tmp_path / f"{target}.py").write_text(made, encoding="utf-8")
        assert all(len(n) < 140 + length for n in re.findall(r"\b_C_\w+", made))
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "format", "--isolated", "--line-length", "120", "--check", tmp_path], capture_output=True
    )
    assert done.returncode == 0, done.stdout


if __name__ == "__main__" and "--update" in sys.argv:
    for each in EXAMPLES:
        (PLANS / f"{each.stem}.plan").write_text(plan_text(planned(each.read_text(encoding="utf-8"))), encoding="utf-8")
    for stem, target in MODULES:
        (PLANS / f"{stem}_{target}.py.txt").write_text(generated(stem, target), encoding="utf-8")
