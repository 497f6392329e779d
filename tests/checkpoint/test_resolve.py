"""What a user calls a model leads to its files, or to an error that says what was tried."""

import sys
import types

import pytest

from jaxinfer.checkpoint import resolve
from jaxinfer.checkpoint.resolve import resolve_model
from jaxinfer.errors import ModelNotFound


@pytest.fixture
def model_directory(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").touch()
    return directory


def test_directories_and_gguf_files_are_themselves(model_directory, tmp_path):
    gguf_file = tmp_path / "model.gguf"
    gguf_file.touch()
    assert resolve_model(model_directory) == model_directory
    assert resolve_model(str(gguf_file)) == gguf_file


def test_an_orbax_directory_is_a_model(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(tmp_path) == tmp_path


def test_a_home_directory_is_expanded(model_directory, monkeypatch):
    monkeypatch.setenv("HOME", str(model_directory.parent))
    assert resolve_model("~/model") == model_directory


def test_the_home_of_nobody_is_no_place_for_a_model():
    with pytest.raises(ModelNotFound, match=r"no model '~no-such-user/m'.*not begin with ~"):
        resolve_model("~no-such-user/m")


def test_a_directory_says_what_it_lacks(model_directory):
    (model_directory / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"it has no \*\.safetensors$"):
        resolve_model(model_directory)
    (model_directory / "config.json").unlink()
    with pytest.raises(ModelNotFound, match=r"no config\.json and no \*\.safetensors"):
        resolve_model(model_directory)


def test_a_single_safetensors_file_is_not_enough(model_directory):
    with pytest.raises(ModelNotFound, match="give the directory"):
        resolve_model(model_directory / "model.safetensors")


def test_a_known_name_is_pulled(monkeypatch, tmp_path):
    monkeypatch.setattr(resolve, "pull", lambda name, **kwargs: tmp_path / name)
    assert resolve_model("smollm2-135m") == tmp_path / "smollm2-135m"


def test_a_local_path_goes_before_a_known_name(monkeypatch, model_directory):
    monkeypatch.chdir(model_directory.parent)
    model_directory.rename(model_directory.parent / "smollm2-135m")
    assert resolve_model("smollm2-135m").resolve() == model_directory.parent / "smollm2-135m"


def hub(monkeypatch, snapshot_download):
    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_downloaded_without_code_and_other_formats(monkeypatch, model_directory):
    asked = {}

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        asked[name] = allow_patterns
        return str(model_directory)

    hub(monkeypatch, snapshot_download)
    assert resolve_model("org/some-model_1.5") == model_directory
    assert "*.safetensors" in asked["org/some-model_1.5"]
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked["org/some-model_1.5"])


def test_a_failing_hub_is_reported_with_its_reason(monkeypatch):
    def snapshot_download(name, **kwargs):
        raise OSError("no network here")

    hub(monkeypatch, snapshot_download)
    with pytest.raises(ModelNotFound, match=r"no directory 'org/name', .*no network here"):
        resolve_model("org/name")


def test_without_the_hub_client_its_name_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFound, match="huggingface_hub must be installed"):
        resolve_model("org/name")


@pytest.mark.parametrize("name", ["", "nonsense", "/absent/model.gguf", "../up", "a/b/c", "a/../b"])
def test_nothing_of_a_name_says_what_was_tried_and_what_is_known(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=r"smollm2-135m|no model directory"):
        resolve_model(name)
