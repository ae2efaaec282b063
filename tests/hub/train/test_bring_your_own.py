from pathlib import Path

from examples.models.bring_your_own import main


def test_the_example_builds_an_adaptable_model_with_its_card(tmp_path: Path) -> None:
    built = main(tmp_path / "model")
    assert built.spec.adapter is not None
    assert built.evidence.variants[0].score > 0.9
    assert "My first model" in (tmp_path / "model/README.md").read_text()
