"""``pull``: says where the model is."""

from jaxinfer.checkpoint.known import KNOWN_MODELS


def test_the_path_is_printed(run, run_json, monkeypatch, tmp_path):
    model = KNOWN_MODELS["smollm2-135m"]
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path))
    path = tmp_path / "smollm2-135m" / model.file_name
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(model.nbytes)  # what has the right length was checked when it came
    assert run("pull", "smollm2-135m")[:2] == (0, f"{path}\n")
    [document] = run_json("pull", "smollm2-135m")
    assert document == {
        "name": "smollm2-135m",
        "path": str(path),
        "bytes": model.nbytes,
        "sha256": model.sha256,
        "licence": "Apache-2.0",
    }
