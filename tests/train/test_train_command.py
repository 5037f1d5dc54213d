"""The command line: help, mistakes, and what each ends with."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fedtiny_export.errors import FedtinyError, UsageError

from fedtiny_train.cli import parse, parser
from fedtiny_train.config import apply_flags, check, read_toml, settle, to_toml
from fedtiny_train.methods import Method, method
from fedtiny_train.options import METHODS, Config, options


def test_every_option_is_a_flag_and_no_name_comes_twice():
    names = [item.name for _, item in options()]
    assert len(names) == len(set(names))
    text = parser().format_help()
    assert all("--" + name.replace("_", "-") in text for name in names)
    assert all(item.metadata["help"] for _, item in options())
    assert "fedtiny-train --resume" in text


def test_help_answers_without_torch_or_numpy():
    code = (
        "import sys\nfrom fedtiny_train.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'onnx', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--method", "fedtinny"], 2, "unknown method 'fedtinny' (did you mean fedtiny?)"),
        (["--metod", "random"], 2, "unknown argument '--metod' (did you mean --method?)"),
        (["--round", "3"], 2, "unknown argument '--round' (did you mean --rounds?)"),
        (["--clients", "many"], 2, "'many' is not a whole number"),
        (["--density", "1.5"], 2, "density is 1.5; it must be at most 1"),
        (["--density", "nan"], 2, "density is nan"),
        (["--lr", "inf"], 2, "lr is inf; it must be a finite number"),
        (["--lr", "1e300"], 2, "lr is 1e+300; it must be at most 3e+38"),
        (["--lr-final", "inf"], 2, "lr_final is inf; it must be a finite number"),
        (["--weight-decay", "inf"], 2, "weight_decay is inf; it must be a finite number"),
        (["--weight-decay", "nan"], 2, "weight_decay is nan; it must be a finite number"),
        (["--data", "b\udcff.npz"], 2, r"data is 'b\udcff.npz'; config.toml cannot hold such a character"),
        (["--momentum", "nan"], 2, "momentum is nan; it must be a finite number"),
        (["--participation", "0"], 2, "participation is 0.0; it must be above 0"),
        (["--partition", "dirichlet"], 2, "partition dirichlet needs a number"),
        (["--partition", "dirichlet:-1"], 2, "must be at least 0.001"),
        (["--partition", "shard:2"], 2, "unknown partition 'shard' (did you mean shards?)"),
        (["--partition", "iid:2"], 2, "partition iid takes no value"),
        (["--public", "holdout"], 2, "public holdout needs a number"),
        (["--public", "some"], 2, "unknown public data 'some'"),
        (["--engine", "flowers"], 2, "unknown engine 'flowers' (did you mean flower?)"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
        (["--device", "cuda", "--workers", "2"], 2, "device cuda computes in this process alone; leave out --workers"),
        (["--device", "cuda", "--engine", "flower"], 2, "leave out --workers and --engine"),
        (["--method", "synflow", "--norm", "scaled"], 2, "synflow scores weights without their signs"),
        (["--data", "cifar10"], 1, "cifar10 is not in data_dir .: it has no cifar-10-batches-py/{data_batch_1"),
        (["--data", "digit"], 2, "unknown data set 'digit' (did you mean digits?)"),
        (["--model", "mlp"], 2, "model mlp takes feature vectors (N,F)"),
        (["--method", "fedavg", "--density", "0.5"], 2, "fedavg keeps every weight"),
        (["--density", "0.001"], 2, "keeps too few"),
        (["--clients", "0"], 2, "clients is 0"),
        (["--clients", "5000"], 1, "5000 clients cannot share 1342 training samples"),
        (["--data", "none.npz"], 1, "data file none.npz does not exist"),
        (["nothing.toml"], 1, "nothing.toml"),
        (["--out", "."], 1, "exists already"),
    ],
)
def test_mistakes_end_in_one_line(tools, tmp_path, monkeypatch, capsys, arguments, status, reason):
    train, _, _, _ = tools
    monkeypatch.chdir(tmp_path)
    assert train(*arguments) == status
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[train]\nround = 3\n", "unknown key 'round' in [train] (did you mean rounds?)"),
        ("[data]\nrounds = 3\n", "unknown key 'rounds' in [data] (it belongs to [train])"),
        ("rounds = 3\n", "unknown section or key 'rounds' (it belongs to [train] rounds)"),
        ("[trian]\n", "unknown section or key 'trian' (did you mean train?)"),
        ("[train]\nrounds = 'x'\n", "rounds must be a whole number, not 'x'"),
        ("[train]\nrounds = true\n", "rounds must be a whole number, not True"),
        ("[train]\nmethod = 'fedtinny'\n", "did you mean fedtiny"),
        ("[fedtiny]\nselection = 1\n", "selection must be true or false"),
        ("[train\n", "not TOML"),
        ("train = 3\n", "[train] must be a table"),
        ("x = " + "[" * 100_000, "not TOML: "),
        ("[train]\nrounds" + ".a" * 2_000 + " = 1\n", "not "),
        ("[train]\nlr = 1" + "0" * 400 + "\n", "too large"),
        ("[train]\nlr = inf\n", "lr is inf; it must be a finite number"),
        ("[run]\nseed = 9223372036854775808\n", "seed is 9223372036854775808; it must be at most 9223372036854775807"),
    ],
)
def test_a_bad_file_is_an_error_with_its_name(tmp_path, text, reason):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(FedtinyError) as caught:
        read_toml(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert caught.value.exit_code == 1


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nrounds = 7\nlr = 1\n")
    found = apply_flags(read_toml(path), {"rounds": 9})
    assert (found.train.rounds, found.train.lr, found.train.batch) == (9, 1.0, Config().train.batch)


def test_config_round_trip(tmp_path):
    made = settle(apply_flags(Config(), {"data": 'odd "name"\\x.npz', "lr": 1e-7, "selection": False, "workers": 3}))
    path = tmp_path / "c.toml"
    path.write_text(to_toml(made))
    assert apply_flags(read_toml(path), {"workers": 3}) == made
    written = tomllib.loads(path.read_text())
    assert "workers" not in written["run"]  # the result does not depend on it
    assert made.train.density == 0.1
    assert settle(apply_flags(Config(), {"method": "fedavg"})).train.density == 1.0


def test_every_method_that_can_be_named_exists():
    for name in METHODS:
        assert isinstance(method(name), Method)
    check(Config())


def test_a_second_run_of_a_day_gets_a_name_of_its_own(tmp_path, monkeypatch):
    import datetime

    from fedtiny_train.runfolder import default_out

    monkeypatch.chdir(tmp_path)
    day = datetime.date(2030, 1, 2)
    first = default_out(settle(Config()), day)
    assert str(first) == "runs/2030-01-02-fedtiny-digits"
    first.mkdir(parents=True)
    assert default_out(settle(Config()), day).name == "2030-01-02-fedtiny-digits-2"


def test_abbreviations_are_not_guessed():
    with pytest.raises(UsageError, match="did you mean --rounds"):
        parse(["--round", "3"])


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_the_configurations_that_come_along_can_be_read(path):
    assert read_toml(path) != Config()
