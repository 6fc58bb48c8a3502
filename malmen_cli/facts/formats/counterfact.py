"""CounterFact (Meng et al. 2022, arXiv 2202.05262): counterfactual statements about a subject."""

from __future__ import annotations

from collections.abc import Mapping

from malmen_cli.facts.fact import Fact, Unrelated
from malmen_cli.facts.fields import Fields
from malmen_cli.facts.formats.published import flat_fact, numbered_source


def full_counterfact(row: Mapping[str, object]) -> Fact:
    """As first published: `requested_rewrite` with a `prompt` whose `{}` stands for the `subject`.

    The right answer to a neighbourhood prompt is `target_true`, which these other subjects share with the fact's own
    until it is edited. Not kept: `attribute_prompts`, `generation_prompts`, the Wikidata ids, and `target_true` as the
    old answer.
    """
    fields = Fields(row, sparse=True)
    rewrite = fields.nested("requested_rewrite")
    template = rewrite.text("prompt", strip=str.rstrip)
    subject = rewrite.text("subject")
    prompt = template.replace("{}", subject)
    if template and template.count("{}") != 1:
        rewrite.refuse("prompt", "must hold '{}', the subject's place, once")
    elif template:
        prompt = rewrite.over({"prompt": prompt}).text("prompt", strip=str.rstrip)
    neighbours = fields.all("neighborhood_prompts", strip=str.rstrip)
    true = rewrite.nested("target_true").text("str") if neighbours else ""
    fact = Fact(
        prompt=prompt,
        target=rewrite.nested("target_new").text("str"),
        subject=subject,
        rephrases=fields.all("paraphrase_prompts", strip=str.rstrip),
        unrelated=tuple(Unrelated(neighbour, true) for neighbour in neighbours),
        source=numbered_source(fields, "case_id"),
    )
    fields.check()
    return fact


def compact_counterfact(row: Mapping[str, object]) -> Fact:
    """One rephrase and one neighbour a fact (EasyEdit, qizhou000/RECIPE). Not kept: `ground_truth`, the old answer.

    Of KnowEdit's records without locality, which look like these, the rephrases are in `rephrase`. Not kept: EasyEdit's
    `portability`, which asks for what follows from the fact.
    """
    rephrases = "rephrase" if "rephrase" in Fields(row, sparse=True).row else "rephrase_prompt"
    return flat_fact(
        row,
        prompt="prompt",
        target="target_new",
        rephrases=rephrases,
        unrelated=("locality_prompt", "locality_ground_truth"),
        source="case_id",
    )
