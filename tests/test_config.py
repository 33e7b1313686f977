"""Configurations: errors name the file, the key, the value and the fix; the files in configs/ are valid."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.config import ClassCluster, Config, RemoteCluster, load_config
from pipeline.errors import ConfigError
from tests.conftest import REPO
from tests.making import config_file


def error_of(folder: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(folder, **sections))
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"archive": {"images": "*.tif", "bnads": [1]}}, "archive.bnads: unknown key. Did you mean 'bands'?"),
        ({"tilling": {}}, "tilling: unknown key. Did you mean 'tiling'?"),
        ({"cluster": {"type": "local", "wokers": 2}}, "cluster.wokers: unknown key. Did you mean 'workers'?"),
        ({"cluster": {"type": "clown"}}, "cluster: Input tag 'clown'"),
        ({"model": {"path": "m", "batch": 0}}, "model.batch: Input should be greater than or equal to 1 (given: 0)"),
        ({"model": {"path": "m", "test_time_flips": 3}}, "model.test_time_flips"),
        ({"tiling": {"tile": 64, "overlap": 64}}, "overlap 64 must be below tile 64"),
        ({"tiling": {"tile": "largest"}}, "tiling.tile.literal['auto']: Input should be 'auto' (given: 'largest')"),
        ({"tiling": {"tile": 0}}, "tiling.tile"),
        ({"tiling": {"block": 10}}, "block 10 is too small"),
        ({"cluster": {"type": "address"}}, "give either address or scheduler_file"),
        ({"cluster": {"type": "address", "address": "tls://a:1", "tls_ca": "x"}}, "TLS needs all of"),
        ({"cluster": {"type": "class", "class": "a.B"}}, "give either workers"),
        ({"resolution": "fine"}, "resolution"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"archive": {}}, "archive.images: is missing and has no default"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_fix(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    text = error_of(tmp_path, **sections)
    assert said in text
    assert text.startswith(str(tmp_path / "config.yaml"))


def test_a_value_that_is_vast_is_not_repeated(tmp_path: Path) -> None:
    bomb = "\n".join(["a0: &a0 [lol]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 6))])
    (tmp_path / "x.yaml").write_text(f"{bomb}\nname: *a5\n")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "x.yaml")
    assert len(str(refused.value)) < 4000


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    assert len(error_of(tmp_path, tilling={}, resolution=-1, model={}).splitlines()) >= 3


def test_what_is_no_configuration_is_said_to_be_none(tmp_path: Path) -> None:
    for text, said in (
        ("a: [", "is not YAML"),
        ("a: 2024-13-01", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("- a", "holds list"),
        ("", "holds NoneType"),
    ):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_paths_start_from_the_config_file_and_data_from_its_root(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    config = load_config(config_file(tmp_path / "configs", root="../data"))
    assert config.archive.images == str(tmp_path / "data" / "scenes" / "*.tif")
    assert config.truth.pattern == str(tmp_path / "data" / "labels" / "{stem}.tif")
    assert config.output == tmp_path / "configs" / "out"
    assert config.model.path == tmp_path / "configs" / "model"
    moved = load_config(tmp_path / "configs" / "config.yaml", root=tmp_path / "elsewhere")
    assert moved.archive.images == str(tmp_path / "elsewhere" / "scenes" / "*.tif")


def test_files_of_a_running_cluster_start_from_the_config_file_too(tmp_path: Path) -> None:
    keys = {"tls_ca": "ca.pem", "tls_cert": "keys/me.pem", "tls_key": "/etc/me.key"}
    cluster = load_config(config_file(tmp_path, cluster={"type": "address", "address": "tls://a:1", **keys})).cluster
    assert isinstance(cluster, RemoteCluster)
    assert (cluster.tls_ca, cluster.tls_cert) == (tmp_path / "ca.pem", tmp_path / "keys" / "me.pem")
    assert cluster.tls_key == Path("/etc/me.key")
    assert cluster.scheduler_file is None


def test_tiles_may_be_chosen_by_what_a_probe_found(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, tiling={"tile": "auto", "overlap": 64})).tiling.tile == "auto"


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path))
    with pytest.raises(Exception, match="frozen"):
        config.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_configs_in_the_house_are_valid_and_fit_the_schema(path: Path) -> None:
    assert load_config(path).name
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json.dumps(Config.model_json_schema())))


SECRET = "s3cret-and-long"


@pytest.mark.parametrize(
    "sections",
    [
        {"cluster": {"type": "class", "class": "a.B", "arguments": {"token": SECRET}}},  # neither workers nor maximum
        {"cluster": {"type": "class", "class": "a.B", "arguments": SECRET, "workers": 1}},
        {"cluster": {"type": "classes", "arguments": [{"token": SECRET}]}},
        {"hooks": {"command": [{"header": SECRET}]}},
        {"hooks": {"webhook": f"htps://{SECRET}"}},
        {"gates": {"miou": {"max_drop": 0.1}}, "report": {"baseline": "none"}, "hooks": {"command": ["a", SECRET]}},
    ],
)
def test_what_may_be_a_secret_is_in_no_message(tmp_path: Path, sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(config_file(tmp_path, **sections))
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_file_that_is_no_yaml_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(f"cluster:\n  token: {SECRET}: [\n")
    with pytest.raises(ConfigError, match=r"is not YAML: mapping values are not allowed here \(line 2, column 25\)") as raised:
        load_config(tmp_path / "broken.yaml")
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_reports_keep_neither_hooks_nor_the_arguments_of_a_cluster(tmp_path: Path) -> None:
    cluster = {"type": "class", "class": "a.B", "arguments": {"token": SECRET}, "workers": 3}
    found = load_config(config_file(tmp_path, cluster=cluster, hooks={"command": ["a", SECRET]}))
    assert SECRET not in json.dumps(found.reported())
    assert SECRET not in repr(found)
    assert found.reported()["cluster"]["workers"] == 3
    assert isinstance(found.cluster, ClassCluster)
    assert found.cluster.arguments == {"token": SECRET}
