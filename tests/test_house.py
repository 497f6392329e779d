"""The house itself: what an import costs, which names are public, what a wheel holds."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

import jaxinfer
from jaxinfer.presets import find_config
from pallas_kernels.tune import OPERATIONS
from sharding import make_mesh
from tests.conftest import check_shapes

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints; a failure shows its standard error."""
    command = [sys.executable, "-c", code]
    env = os.environ | environment
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import jaxinfer",
        "from jaxinfer import SamplingParams",
        "from jaxinfer import RequestOutput",
    ],
)
def test_naming_a_request_loads_no_jax(statement):
    assert run_python(f"{statement}; import sys; print('jax' in sys.modules)") == "False"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_starts_no_backend(package):
    """A backend that does not exist fails when it is started."""
    names = "" if package != "jaxinfer" else "; [getattr(jaxinfer, n) for n in jaxinfer.__all__]"
    assert run_python(f"import {package}{names}", JAX_PLATFORMS="no_such_backend") == ""


@pytest.mark.parametrize("name", jaxinfer.__all__)
def test_every_public_name_leads_somewhere(name):
    assert getattr(jaxinfer, name) is not None
    assert name in dir(jaxinfer)


def test_an_unknown_name_is_refused_with_the_public_ones():
    with pytest.raises(AttributeError, match="no attribute 'Engine'; it has LLM"):
        _ = jaxinfer.Engine


def test_the_version_is_the_one_of_the_project():
    assert jaxinfer.__version__ == PROJECT["project"]["version"]


def test_the_code_imports_only_what_the_project_declares():
    declared = PROJECT["project"]["dependencies"] + [
        requirement
        for extra in ("serve", "trace", "plot", "bench", "compress")
        for requirement in PROJECT["project"]["optional-dependencies"].get(extra, [])
    ]
    homes = importlib.metadata.packages_distributions()
    undeclared = {}
    for source in SOURCES:
        for module in imported_modules(source) - set(sys.stdlib_module_names) - set(PACKAGES):
            if not {project_name(home) for home in homes.get(module, [module])} & set(
                map(project_name, declared)
            ):
                undeclared.setdefault(module, str(source.relative_to(ROOT)))
    assert undeclared == {}


def imported_modules(source: Path) -> set[str]:
    """The top-level names of all absolute imports in a file, wherever they stand."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    from_ = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in plain | from_}


def project_name(requirement: str) -> str:
    """``"huggingface_hub>=0.27"`` -> ``"huggingface-hub"``."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].replace("_", "-").lower()


def test_a_wheel_holds_every_source_file_every_config_and_every_table(tmp_path):
    build = ["hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *build], cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    configs = (ROOT / "configs").rglob("*.toml")
    wanted = {str(path.relative_to(ROOT)) for path in SOURCES}
    wanted |= {f"jaxinfer/{path.relative_to(ROOT)}" for path in configs} | {"jaxinfer/py.typed"}
    tables = {f"pallas_kernels/{name}/tiles.json" for name in OPERATIONS}
    assert tables == {str(x.relative_to(ROOT)) for x in ROOT.glob("pallas_kernels/*/*.json")}
    wanted |= tables
    assert wanted <= inside
    assert not [name for name in inside if name.startswith("tests/")]


def test_shapes_in_annotations_are_checked_and_other_values_left_to_the_function():
    @jaxtyped(typechecker=check_shapes)
    def scaled(x_TD: Float[Array, "T D"], weight_D: Float[Array, " D"], scale: float) -> Array:
        return x_TD * weight_D[None] * scale

    x_TD = jnp.ones((2, 3), jnp.float32)
    assert jax.jit(scaled)(x_TD, x_TD[0], 2).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="weight_D"):
        scaled(x_TD, x_TD[:, 0], 2.0)
    with pytest.raises(TypeCheckError, match="x_TD"):
        scaled(x_TD.astype(jnp.int32), x_TD[0], 2.0)


@pytest.mark.parametrize("function", [find_config, make_mesh])
def test_the_packages_are_loaded_through_that_check(function):
    assert inspect.unwrap(function) is not function
