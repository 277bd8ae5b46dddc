from __future__ import annotations

from kv_pipeline.demo.__main__ import main


def test_command_writes_a_folder_and_says_what_is_in_it(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--users", "1", "--conversations", "1", "--seed", "3"]) == 0
    assert "ada/requests.db: 17 rows" in capsys.readouterr().out
    assert (tmp_path / "ada" / "requests.db").exists()


def test_an_existing_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "ada").mkdir()
    assert main(["--out", str(tmp_path)]) == 2
    assert "Choose an empty folder" in capsys.readouterr().err
