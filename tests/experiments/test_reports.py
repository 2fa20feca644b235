"""Tables, conclusions and plots, from rows that are made up."""

import html.parser
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import comparison_report, report, rounds_report
from experiments.report import Picture, Report, Table
from experiments.results import Identity, Row
from experiments.worlds import Score

ACCURACY = Score("accuracy", lambda variables, data: 0.0)
BITS = Score("bits_per_character", lambda variables, data: 0.0, digits=2, higher_is_better=False)


def row(method, options, seed, update_bytes, value, *, validation=None, sent=True, score=ACCURACY):
    full, deployed = (0.9, 0.5) if score.higher_is_better else (1.0, 3.0)
    name = score.name
    metrics = {
        "update_bytes": update_bytes,
        "sent": sent,
        "train_seconds": 1.0,
        name: value,
        f"full_update_{name}": full,
        f"deployed_{name}": deployed,
        f"validation_{name}": full if validation is None else validation,
        f"deployed_validation_{name}": deployed,
    }
    return Row(Identity("compare", "digits", "mlp", {}, method, options, seed, 0), metrics)


def rows_of_three():
    rows = [row("full", {"bits": None}, seed, 1_000_000, 0.9) for seed in range(2)]
    rows += [row("tiny", {"rank": 1}, seed, 50, 0.95, validation=0.8, sent=False) for seed in range(2)]
    return rows + [row("small", {"rank": 2}, seed, 500, 0.86 + 0.02 * seed) for seed in range(2)]


def test_the_conclusion_is_chosen_on_validation_data_and_given_in_test_accuracy():
    rows = rows_of_three()
    summaries = comparison_report.summarise(rows, ACCURACY)
    assert [summary.method for summary in summaries] == ["tiny", "small", "full"]
    assert summaries[1].kept == pytest.approx(0.925)
    assert summaries[1].spread == pytest.approx(np.std([0.86, 0.88], ddof=1))
    assert [(summary.sent, summary.seeds) for summary in summaries] == [(0, 2), (2, 2), (2, 2)]
    sentence = comparison_report.conclusion(rows, summaries, ACCURACY)
    assert sentence.startswith(
        "500 bytes instead of 1,000,000 (2,000 times fewer) keep 92 % of the full update's gain: accuracy 0.870 ± 0.014"
    )
    assert "0.900 ± 0.000 with the full update, 0.500 without any" in sentence


def test_a_score_may_be_better_where_it_is_lower():
    rows = [row("full", {"bits": None}, 0, 1_000, 1.0, score=BITS), row("small", {}, 0, 10, 1.05, score=BITS)]
    rows.append(row("worse", {}, 0, 5, 2.5, validation=2.5, score=BITS))
    summaries = comparison_report.summarise(rows, BITS)
    assert [round(summary.kept, 3) for summary in summaries] == [0.25, 0.975, 1.0]
    sentence = comparison_report.conclusion(rows, summaries, BITS)
    assert "10 bytes instead of 1,000" in sentence
    assert "bits per character 1.05 with small" in sentence
    assert comparison_report.table(summaries, BITS).head[3] == "bits per character"


def test_a_full_update_that_gains_nothing_has_no_share():
    rows = [row("full", {"bits": None}, 0, 1_000, 0.9)]
    worse = {"full_update_accuracy": 0.4, "validation_accuracy": 0.4, "accuracy": 0.4}
    rows = [one._replace(metrics={**one.metrics, **worse}) for one in rows]
    summaries = comparison_report.summarise(rows, ACCURACY)
    assert comparison_report.table(summaries, ACCURACY).body[0][4] == "-"
    assert comparison_report.conclusion(rows, summaries, ACCURACY).startswith("The full update gains nothing")


def test_rows_without_a_full_update_do_not_count_for_its_share():
    rows = [row("full", {"bits": None}, 0, 1_000, 0.9), row("small", {}, 0, 10, 0.7), row("small", {}, 1, 10, 0.9)]
    rows[2].metrics["full_update_accuracy"] = None
    small, _ = comparison_report.summarise(rows, ACCURACY)
    assert small.kept == pytest.approx(0.5)


def test_the_plot_has_every_summary_at_its_place_and_both_levels():
    rows = rows_of_three()
    summaries = comparison_report.summarise(rows, ACCURACY)
    axes = Figure().subplots()
    comparison_report.draw([axes], rows, summaries, ACCURACY, title="Digits")
    drawn = {container.get_label(): container.lines[0].get_xydata().tolist() for container in axes.containers}
    assert drawn == {s.method: [[s.update_bytes, s.score]] for s in summaries}
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [0.9, 0.5]
    assert [text.get_text() for text in axes.texts] == ["full update 0.900", "no update 0.500"]
    assert (axes.get_xscale(), axes.get_title()) == ("log", "Digits")
    assert axes.get_ylabel() == "test accuracy on the device"


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value[:1] != "#"]

    def handle_data(self, data):
        self.data.append(data.strip())


def test_the_page_holds_table_conclusion_command_and_plot_in_itself(tmp_path):
    table = Table(("bytes", "method"), [("10", "a<b"), ("1,000", "c")], left=(1,))
    picture = Picture("score_vs_bytes", lambda panels: panels[0].plot([1, 2], [3, 4], label="line"))
    said = Report("Title", "python run.py '--settings=x;y'", [table, "", "The end."], [picture], "What it is.")
    shown = report.write(tmp_path, said)
    assert shown == f"{table.markdown()}\n\nThe end."
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    for piece in ("Title", "python run.py '--settings=x;y'", "a<b", "1,000", "The end.", "What it is."):
        assert piece in page.data
    assert page.tags.count("svg") == 1
    assert page.tags.count("tr") == 3
    assert page.links == []
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    assert [float(svg.get(name).removesuffix("pt")) for name in ("width", "height")] == [576, 360]
    assert "1.2" in {text.strip() for text in svg.itertext()}  # a tick
    markdown = (tmp_path / "report.md").read_text()
    for piece in ("# Title", "    python run.py '--settings=x;y'", shown, "(score_vs_bytes.png)", "What it is."):
        assert piece in markdown
    assert (tmp_path / "score_vs_bytes.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_rows_give_the_same_page(tmp_path):
    picture = Picture("picture", lambda panels: panels[0].plot([1, 2], [3, 4]))
    said = Report("Title", "command", [Table(("a",), [("b",)], left=())], [picture], "Legend.")
    pages = set()
    for _ in range(2):
        report.write(tmp_path, said)
        pages.add((tmp_path / "report.html").read_bytes())
    assert len(pages) == 1


def test_a_table_is_aligned():
    table = Table(("bytes", "method"), [("10", "a"), ("1,000", "longer")], left=(1,))
    assert table.markdown().splitlines() == [
        "| bytes | method |",
        "|------:|:-------|",
        "|    10 | a      |",
        "| 1,000 | longer |",
    ]


def round_row(method, seed, number, accuracy, *, sent=True, trained=None, ratio=0.005):
    metrics = {
        "update_bytes": 100,
        "plain_bytes": 400,
        "sent": sent,
        "train_seconds": 1.0,
        "accuracy": accuracy,
        "trained_accuracy": accuracy if trained is None else trained,
    }
    options = {} if method == "fu" else {"ratio": ratio, "bits": 16}
    return Row(Identity("rounds", "mnist", "mlp", {}, method, options, seed, number), metrics)


def test_the_table_of_rounds_pairs_seeds_and_rounds():
    rows = [round_row("fu", seed, number, 0.9 + 0.01 * number) for seed in range(2) for number in range(3)]
    rows += [
        round_row("dpu", seed, number, 0.88 + 0.01 * number + 0.01 * seed) for seed in range(2) for number in range(2)
    ]
    rows += [round_row("rpu", 0, 5, 0.5, sent=False, trained=0.4)]
    ahead = [("gcpu", 0, 0, 0.9), ("gcpu", 1, 0, 0.9), ("gcpu", 0, 1, 0.1)]  # seed 0 is a round ahead
    rows += [round_row(*one) for one in ahead]
    full, dpu, rpu, gcpu = rounds_report.summarise(rows)
    assert (gcpu.rounds, gcpu.accuracy.tolist()) == (1, [90, 90])
    np.testing.assert_allclose(full.difference, [0, 0], atol=1e-12)
    np.testing.assert_allclose(dpu.difference, [-2, -1])
    np.testing.assert_allclose(dpu.accuracy, [88.5, 89.5])
    assert (dpu.update_bytes, dpu.plain_bytes, dpu.sent, dpu.published) == (200, 800, 2, -0.17)
    assert (len(rpu.difference), rpu.sent) == (0, 0)
    assert "-1.50 ± 0.71" in rounds_report.table([dpu]).markdown()


def test_what_was_published_is_of_the_same_data_model_and_ratio():
    for ratio, published in ((0.005, -0.72), (0.01, None)):
        (line,) = rounds_report.summarise([round_row("gcpu", 0, 0, 0.9, ratio=ratio)])
        assert line.published == published


def test_the_plot_of_rounds_has_each_methods_mean_and_difference():
    rows = [round_row("fu", seed, number, 0.9 + 0.01 * number) for seed in range(2) for number in range(2)]
    rows += [round_row("dpu", seed, number, 0.8 + 0.02 * seed) for seed in range(2) for number in range(2)]
    accuracy, difference = Figure().subplots(2)
    rounds_report.draw([accuracy, difference], rows, title="Digits")
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    np.testing.assert_allclose(lines["fu"], [90, 91])
    np.testing.assert_allclose(lines["dpu"], [81, 81])
    np.testing.assert_allclose(next(d for d in difference.lines if d.get_label() == "dpu").get_ydata(), [-9, -10])
