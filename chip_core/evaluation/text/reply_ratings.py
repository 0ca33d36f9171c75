"""Read ratings in judges' replies as they are meant: one from 0 to 6, or two from 1 to 10.

A number is a rating if a reply says so: "Rating: 5", "I would rate this 5", "5/6", a line of its
own. The scale is not a rating, nor is a negated one ("not a 5") or one of something else ("the
maximum rating is 6"). Numbers that are not whole from 0 to 6 (4.5, 4-5, 7) and contradictions are
not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from chip_core.evaluation.text.replies import normalize_reply

MAX_LENGTH = 50_000  # characters of a reply without its reasoning: no judge is asked for so many

_NUMBER = r"[-+]?\d{1,6}(?:[.,]\d{1,6})*"
_NUMBER_WORDS = {
    word: str(number)
    for number, words in enumerate(
        (
            "zero zéro cero", "", "two zwei deux dos", "three drei trois tres",
            "four vier quatre cuatro", "five fünf cinq cinco", "six sechs seis",
            "seven sieben sept siete", "eight acht huit ocho", "nine neun neuf nueve",
            "ten zehn dix diez",
        )
    )
    for word in words.split()
}  # fmt: skip
_NUMBER_WORD = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(_NUMBER_WORDS)})(?![^\W\d_])")
#: "one" and Chinese numerals are other words, too: they count where a rating is expected.
_ONE = re.compile(
    r"((?:rating|score|bewertung|note|puntuación)\s*(?:[:=]|is|of|ist|est|es|von|de)\s*)"
    r"(?:one|eins|une?|uno)(?![^\W\d_]|\s+of\b)"
)
_CHINESE_NUMBER = re.compile(
    r"(?<=[:为是给打得])\s*([零一二两三四五六七八九十])(?=\s*(?:分|$|[。,\n]))"
)
_CHINESE_DIGITS = {**{letter: str(k) for k, letter in enumerate("零一二三四五六七八九")},
               "两": "2", "十": "10"}  # fmt: skip

#: Nouns and verbs of rating.
_RATING_WORDS = (
    r"ratings?|rate[sd]?|scor(?:es?|ed|ing)|grade[sd]?|(?:end|gesamt)?bewertung(?:en)?|bewerte\w*|wertung|"
    r"(?:gesamt)?punktzahl(?:en)?|puntuaci(?:ón|ones)|puntúo|puntaje|calificaci(?:ón|ones)|califico|"
    r"valoraci(?:ón|ones)|valoro|évaluations?|évalue\w*|evaluaci(?:ón|ones)|evaluations?"
)
_CHINESE_RATING_WORDS = "评分|评级|得分|分数|打分|总分|评为|评价"
#: Words before a rating, only if nothing follows that the number could count.
_WEAK_RATING_WORDS = (
    r"assessment|marks?|note[rz]?|(?:end|gesamt)note|notation|nota|cote|punkte|points|puntos|vergebe|gebe|verdient\w*|"
    r"giv(?:e|es|ing)|(?<!the )given|gave|assign(?:ed|s)?|award(?:ed|s)?|deserves?|merits?|earns?|"
    r"receives?|gets?|donne\w*|attribue\w*|mérite|obtient|doy|daría|otorgo|asigno|pongo|merece|"
    r"obtiene|mets|erhält|bekommt"
)
_CHINESE_WEAK_RATING_WORDS = "给|打|得"
#: Words that label a rating only before a colon.
_LABEL = (
    r"answer|antwort|réponse|respuesta|result|ergebnis|résultat|resultado|verdict|urteil|veredicto|"
    r"conclusion|output|value|ausgabe|fazit"
)
_CHINESE_LABEL = "答案|结果|结论"
_RATING_KEY = re.compile(
    rf"(?P<key>(?<![^\W\d_])(?:{_RATING_WORDS})(?![^\W\d_])|{_CHINESE_RATING_WORDS})|"
    rf"(?P<less>(?<![^\W\d_])(?:{_WEAK_RATING_WORDS})(?![^\W\d_])|{_CHINESE_WEAK_RATING_WORDS})|"
    rf"(?P<label>(?<![^\W\d_])(?:{_LABEL})(?![^\W\d_])|{_CHINESE_LABEL})"
)
_NUMBER_AFTER = re.compile(
    rf"(?P<gap>(?:[^\d.!?;。\n+-]|[+-](?!\d)|\n(?!\s*\n\s*\n)){{0,80}}?)(?P<n>{_NUMBER})"
)
_SEPARATOR_BEFORE = re.compile(r"[:=|\n\-–—>→][\s(\[{+]*$")
#: Words between a key and its number which show that the number is not the rating.
_DENIED_GAP = re.compile(
    r"\b(?:not|never|nicht|keine?\w*|pas|jamais|nunca|no\s+(?:es|sería|merece|puede)|below|above|"
    r"under|less|lower\w*|higher|than|least|at\s+most|between|by|from|if|unter|über|mindestens|"
    r"höchstens|weniger|mehr|moins|plus\s+de|menos|más|max\w*|min(?:imum)?|possible|range\w*|"
    r"threshold|up\s+to)\b|^\s*(?:scale|skala|échelle|escala|量表)|n't\b|不|没|低于|高于|满分|最高|最低"
)
#: The same before a key, in its clause.
_DENIED_BEFORE = re.compile(
    r"(?:rather\s+than|instead\s+of|\bnot\b|n't\b|\bnever\b|would\s+have|could\s+(?:be|have)|"
    r"might\s+(?:be|have)|may\s+(?:be|have)|\bif\b|unless|unlike|statt|nicht\b|plutôt\s+que|"
    r"au\s+lieu|\bpas\b|en\s+lugar|en\s+vez|\bmax\w*|\bmin(?:imum)?\b|possible|"
    r"(?:highest|lowest|best|worst)\s+(?:possible\s+)?(?=$|rating\s+is|score\s+is)|previous|initial|"
    r"first|original|reference|\bno\s+(?:merece|le|es)\b|而不是|不|最高|最低)[^,.;:\n。]{0,24}$"
)
_CLAUSE = re.compile(
    r"[,.;:!?\n。]|\s[-–—]\s|\b(?:so|and|but|therefore|thus|hence|also|daher|und|donc|et|y|así|"
    r"because)\b"
)
_FINAL = re.compile(
    r"(?:final|overall|total|gesamt|endgültige?\w*|finale?|globale?|general|最终|总|综合)\W*$"
)
#: Right after a number: it is not whole, or one of several.
_NOT_WHOLE_AFTER = re.compile(
    r"\s*%|\s*[.,]\d|[.,]?\d|[a-oq-zà-ÿ]|\+|-(?=\s*(?:$|[.,)\n]))|"
    r"\s*(?:and\s+(?:a\s+)?half|und\s+ein\w*\s+halb\w*|einhalb|point\s+\w|komma|virgule|coma|"
    r"et\s+demie?|y\s+medi[oa]|分?半)|"
    r"\s*(?:~|\.{2,}|\bto\b|\bthrough\b|\bor\b|\bbis\b|\boder\b|\bou\b|\bà\b|\bo\b|\ba\b|或|到|至|/|->|→|=>)\s*\d|"
    r"\s*\|\s*\d|[ \t]+\d|\s*,?\s*(?:or|and|oder|ou|o)\s+(?:higher|more|above|better|lower|less|"
    r"below|höher|mehr|weniger|plus|moins|más|menos)\b|"
    r"-\d|\s*[–—]\d|\s*[-–—]\s*\d+(?!\s*[a-zà-ÿ]{3})|"
    r"\s*(?:[,;&]|\b(?:and|und|et|y)\b|和)\s*\d+\s*(?:$|[.\n)\]}])"
)
#: Right before a number: it is a bound.
_BOUND_BEFORE = re.compile(r"(?:(?<![-=–—])[<>]|[≤≥])\s*=?\s*$")
_UNIT = r"(?:points?|pts?|stars?|marks?|punkten?|sterne|étoiles?|puntos?|estrellas?|分|星|点)"
#: After a number that is not a count of something.
_STATEMENT_END = re.compile(
    rf"\s*{_UNIT}?\s*(?:$|[\n.,;:!?()\[\]{{}}|。、\-–—<]|\b(?:because|since|as|for|due|given|with|"
    r"weil|da|denn|für|car|parce|puisque|pour|porque|ya|pues|para|and|but|und|aber|et|mais|y|pero|"
    r"on|overall|rating|score|here|is|seems|would|"
    r"rather|instead|not|while|whereas|where|which|if|unless|statt|während|tandis|mientras|"
    r"ist|est|es|to|under|auf|sur)\b|因|吧|是|的|,)"
)
_MIN_SCALE_RUN = 4  # ratings that follow each other by one: a scale that was repeated
_NUMBER_LINE = re.compile(rf"\W{{0,6}}(?P<n>{_NUMBER})\s*{_UNIT}?\W{{0,6}}")
_DESCRIBED_NUMBER_LINE = re.compile(
    r"\W{0,6}(?P<n>\d)\s*[-–—:,.(=]{0,2}\s*(?:very|somewhat|not)\s+informative\b.*"
)


@dataclass(frozen=True)
class _Statement:
    """A rating that a reply states; None if it is outside the scale."""

    value: int | None
    weight: int  # a higher one overrides others


def read_rating(reply: str) -> int | None:
    """Return the rating from 0 to 6 in a reply; None if there is none, or several."""
    text = normalize_reply(reply)
    if len(text) > MAX_LENGTH:
        return None
    text = _words_to_digits(text)
    fractions = _find_fractions(text, 6)
    text = _remove_scale(text, 6)
    statements = [*_remove_scale_runs(list(_iter_statements(text))), *fractions]
    if not statements:
        statements = list(_iter_number_lines(text))
    max_weight = max((statement.weight for statement in statements), default=0)
    values = {statement.value for statement in statements if statement.weight == max_weight}
    return values.pop() if len(values) == 1 else None


def read_pair(reply: str) -> tuple[float, float] | None:
    """Return the two ratings from 1 to 10 in a reply: of the first and the second answer.

    The first line decides if it is two numbers: that is what judges are instructed to write. Else
    the ratings that the reply gives by name or in a line of two numbers, if they agree.
    """
    text = normalize_reply(reply)
    if len(text) > MAX_LENGTH:
        return None
    text = re.sub(r"(?<=\d)\s?分", " ", _remove_scale(_words_to_digits(text), 10))
    lines = [line for line in text.splitlines() if re.search(r"\w", line)]
    first_pair = _parse_pair(lines[0]) if lines else None
    # "Helpfulness: 8 7" rates a part.
    if first_pair is not None and re.match(
        rf"\W*(?:\d|[^\d\n]*(?:{_RATING_WORDS}|{_CHINESE_RATING_WORDS}|{_LABEL}|note|nota))",
        lines[0],
    ):
        return _keep_in_bounds(first_pair)
    named_pairs = _find_named_pairs(text)
    pairs = {pair for line in lines if (pair := _parse_pair(line)) is not None} | named_pairs
    return _keep_in_bounds(pairs.pop()) if len(pairs) == 1 else None


def _words_to_digits(text: str) -> str:
    text = re.sub(r"\b(approx|ca|env|aprox)\.", r"\1", text)
    text = re.sub(r"(?<=[^\W\d])\.{2,}(?=\s?\d)", ": ", text)
    text = _NUMBER_WORD.sub(lambda match: _NUMBER_WORDS[match[0]], text)
    text = _ONE.sub(r"\g<1>1", text)
    return _CHINESE_NUMBER.sub(lambda match: _CHINESE_DIGITS[match[1]], text)


def _remove_scale(text: str, best: int) -> str:
    """Return a text without its description of the scale: its ends, and the best rating."""
    end = rf"{best}(?:[.,]0+)?(?!\d|[.,]\d)"
    any_of = rf"(?<![\d.,])(?:[0-9]|{best})"
    superlative = (
        r"(?:(?:the|das|die|la|le|el|lo)\s+)?(?:very\s+)?(?:best|highest|worst|lowest|perfect|top|"
        r"max\w*|min\w*|bad|good|excellent|beste\w*|schlechteste\w*|höchste\w*|meilleure?|pire|"
        r"mejor|peor|最好|最差|最高|最低|满分|最佳)"
    )
    copula = (
        r"(?:is|are|being|=|:|means?|ist|bedeutet|est|étant|signifie|es|significa|为|是|代表|表示)"
    )
    patterns = (
        # rating (0-6): 5. A bracket before the colon explains the number that follows.
        r"(?<=[^\W\d])\s{0,4}[(\[][^()\[\]\n]{0,120}[)\]](?=\s{0,4}(?:[:=\-–—>]|is\b|ist\b|est\b|es\b|为|是))",
        rf"(?:\b(?:on|using|auf|sur|en)\s+(?:an?|the|our|this|einer|der|une|la|una)\s+(?:scale|skala|"
        rf"échelle|escala)\s+)?(?:\b(?:from|of|von|de|desde)\s+|从)?(?<![\d.,/])[01]\s*(?:-|–|—|~|"
        rf"\bto\b|\bthrough\b|\bbis\b|\bà\b|\ba\b|\bhasta\b|到|至|\.{{2,}})\s*{end}",
        rf"(?:\b(?:between|zwischen|entre)\s+|在)[01]\s*(?:and|und|et|y|和|到)\s*{end}",
        rf"(?:(?<![\d.,])\d\s*[,/]\s*){{4,12}}(?:(?:and|or)\s*)?{end}",
        rf"\s*(?:/|\bout\s+of\b(?:\s+(?:a\s+)?(?:possible|maximum|max|total)(?:\s+of)?)?|\bsur\b|"
        rf"\bsobre\b|满分(?:为|是)?)\s*{end}(?:\s*{_UNIT})?",
        rf"(?<=\d)\s*\b(?:of|von|aus|de|on|over|auf)\s+(?:a\s+(?:possible|maximum)\s+)?{end}",
        rf"{any_of}\s*{copula}\s*{superlative}\b",
        rf"{superlative}(?:\s+(?:rating|score))?\s*[:=(]?\s*(?:is|being|of|为|是)?\s*{end}",
        rf"(?<![\d.,])(?:{best}|7|11)[\s-]{{0,2}}(?:(?:points?|punkte)[\s-]{{0,2}}(?:likert\s+)?"
        rf"(?:scale|skala)|分制)|\b(?:échelle|escala|skala|scale)\s+(?:de|von|of)\s+{end}",
    )
    for pattern in patterns:
        text = re.sub(" {2,}", " ", re.sub(pattern, " ", text))
    return text


def _find_fractions(text: str, best: int) -> list[_Statement]:
    """Return ratings that name the scale's end: 5/6, 5 out of 6, 5 von 6."""
    matches = re.finditer(
        rf"(?<![\d.,/-])(?P<n>{_NUMBER})\s*(?:/|\bout\s+of\b|\bvon\b|\bsur\b|\bsobre\b|\bde\b)\s*{best}"
        rf"(?:[.,]0+)?(?!\d|[.,/]\d)",
        text,
    )
    return [
        _Statement(_parse_rating(match["n"]), 1)
        for match in matches
        if _STATEMENT_END.match(text, match.end())
        and not _DENIED_BEFORE.search(_clause_before(text, match.start()))
        and not re.search(
            r"(?:-|–|\bto|\bor|bis|à|to)\s*$", text[max(0, match.start() - 6) : match.start()]
        )
    ]


def _iter_statements(text: str) -> Iterator[_Statement]:
    """Yield the statements of a reply, in order."""
    position = 0
    while (key := _RATING_KEY.search(text, position)) is not None:
        position = key.end()
        number_match = _NUMBER_AFTER.match(text, position)
        if number_match is None:
            continue
        gap = number_match["gap"]
        inner_key = _RATING_KEY.search(gap)
        if inner_key is not None and (
            inner_key["label"] is None or _SEPARATOR_BEFORE.search(gap) is not None
        ):
            continue  # it belongs to the nearer key
        is_separated = _SEPARATOR_BEFORE.search(gap) is not None
        is_bare = re.fullmatch(r"[\s()\[\]{}:]*", gap) is not None
        if key["label"] is not None and not (
            is_separated and re.fullmatch(r"[\s:=\-–—>(\[{|]*", gap)
        ):
            continue
        clause = _clause_before(text, key.start())
        if _DENIED_GAP.search(gap) or _DENIED_BEFORE.search(clause):
            continue
        number_end = number_match.end()
        number_text = number_match["n"]
        if number_text[0] == "-" and not re.search(r"[:=]", gap):
            number_text = number_text[1:]  # a dash
        is_not_whole = bool(_NOT_WHOLE_AFTER.match(text, number_end) or _BOUND_BEFORE.search(gap))
        ends_statement = _STATEMENT_END.match(text, number_end) is not None
        is_explicit = key["key"] is not None and (is_separated or is_bare)
        if not (ends_statement or is_not_whole or is_explicit):
            continue
        if is_not_whole and not is_explicit and not is_separated and key["key"] is None:
            continue
        is_strong = (is_separated or is_bare) and key["less"] is None
        weight = 2 if is_strong else 1
        if is_strong and _FINAL.search(clause):
            weight = 3
        yield _Statement(None if is_not_whole else _parse_rating(number_text), weight)
        position = number_match.end()
    for match in re.finditer(
        rf"(?<![\d.,/-])({_NUMBER})\s+(?:is|ist|est|es)\s+(?:the|my|die|meine|la|ma|mi)\s+"
        rf"(?:final\s+)?(?:{_RATING_WORDS}|note|nota)",
        text,
    ):
        yield _Statement(_parse_rating(match[1]), 1)


def _remove_scale_runs(statements: list[_Statement]) -> list[_Statement]:
    """Remove a repeated scale: 6, 5, 4, … or 0, 1, 2, …."""
    remaining: list[_Statement] = []
    start = 0
    while start < len(statements):
        end = start + 1
        step = 0
        while end < len(statements):
            previous, following = statements[end - 1].value, statements[end].value
            if previous is None or following is None or abs(following - previous) != 1:
                break
            if step not in (0, following - previous):
                break
            step = following - previous
            end += 1
        if end - start >= _MIN_SCALE_RUN and statements[start].value in (0, 6):
            start = end
        else:
            remaining.append(statements[start])
            start += 1
    return remaining


def _iter_number_lines(text: str) -> Iterator[_Statement]:
    """Yield the numbers on a line of their own, with or without their label."""
    for line in text.splitlines():
        match = _NUMBER_LINE.fullmatch(line.strip()) or _DESCRIBED_NUMBER_LINE.fullmatch(
            line.strip()
        )
        if match is not None:
            yield _Statement(_parse_rating(match["n"]), 1)


def _clause_before(text: str, end: int) -> str:
    """Return the text before a position in its clause."""
    return _CLAUSE.split(text[max(0, end - 60) : end])[-1]


def _parse_rating(number: str) -> int | None:
    """Return a number as a rating from 0 to 6, or None for any other (5.0 is 5)."""
    match = re.fullmatch(r"\+?(\d+)(?:[.,]0+)?", number)
    value = int(match[1]) if match is not None else -1
    return value if 0 <= value <= 6 else None


# --- two ratings

_DOT_NUMBER = r"\d{1,2}(?:\.\d{1,4})?"
_COMMA_NUMBER = r"\d{1,2}(?:[.,]\d{1,4})?"
_PAIR_SEPARATOR = (
    r"[)\]}>]?(?:\s*[;/|&]\s*|\s*\b(?:and|und|et|y|vs|versus)\b\.?\s*|\s*(?:和|与)\s*|\s+-\s+|\s+)"
    r"[(\[{<]?"
)
_OPEN, _CLOSE = r"(?:[\s(\[{<|]|-\s)*", r"[\s)\]}>|]*"
_REST_OF_LINE = (
    r"(?:[.;:,!。！，；(\-–—]+(?!\s*\d)(?=\s|$|\D).*|"
    r"(?:because|since|weil|porque|car|respectively|jeweils|respectivement|respectivamente).*)?"
)
_PAIR_LINES = tuple(
    re.compile(
        rf"(?P<lead>[^\d\n]{{0,80}}?[:=])?{_OPEN}(?P<one>{number}){between}(?P<other>{number}){_CLOSE}{_REST_OF_LINE}\s*"
    )
    for number, between in (
        (_DOT_NUMBER, rf"(?:\s*[,:]\s*|{_PAIR_SEPARATOR}|-)"),
        (_COMMA_NUMBER, rf"(?:,?{_PAIR_SEPARATOR})"),
    )
)
_FIRST_MARK, _SECOND_MARK = "\ue001", "\ue002"  # replace the names of the answers
_ANSWER_NOUNS = (
    r"assistant|assistent\w*|asistente|ai|answer|antwort|réponse|respuesta|response|reply|model\w*|"
    r"modèle|score|rating|bewertung|punktzahl|note|puntuación|nota|candidate|system|output"
)
_CHINESE_ANSWER_NOUNS = "助手|助理|回答|答案|模型|评分|得分|分数"
_ANSWER_NAMES = tuple(
    re.compile(
        rf"(?<![^\W\d_])(?:{_ANSWER_NOUNS})\s{{0,2}}[#(-]?\s{{0,2}}(?:{digits})\)?(?:'s)?(?![\w.,]\d|[^\W_]|/)|"
        rf"(?:{_CHINESE_ANSWER_NOUNS})\s{{0,2}}(?:{digits}|{han})(?![\d])|第{han}(?:个|位)?(?:{_CHINESE_ANSWER_NOUNS})?|"
        rf"(?<![^\W_])(?:{ordinals})(?![^\W_])(?:\s+(?:{_ANSWER_NOUNS})(?![^\W\d_]))?|(?<![^\W_])[ar]{digits[0]}(?![\w])|"
        rf"^\W{{0,4}}{digits[0]}[.):](?=\s+\d)|(?<=[{{ ]){digits[0]}:(?=\s?\d)",
        re.MULTILINE,
    )
    for digits, han, ordinals in (
        ("1|a|one|i", "一", "first|erste[rns]?|première?|primer[oa]?"),
        ("2|b|two|ii|2", "二", "second|zweite[rns]?|deuxième|seconde?|segund[oa]"),
    )
)
_WORDS_BEFORE_RATING = re.compile(
    r"(?:[\s:=\-–—>|,()\[\]{]|\b(?:score[sd]?|ratings?|rated?|grade|is|was|be|gets?|got|would|receive[sd]?|deserves?|"
    r"earns?|a|an|at|of|the|with|points?|given|reference|model|baseline|answer|to|"
    r"bewertung|punkte|punktzahl|erhält|bekommt|ist|mit|eine?|verdient|note|obtient|reçoit|mérite|est|"
    r"une?|la|de|puntuación|nota|obtiene|recibe|merece|es|una?|calificación)\b|得分?|获得|评分|分数|为|是|给|打)*"
)
_RATINGS_TOGETHER = re.compile(
    r"(?:\b(?:scores|ratings|bewertungen|punktzahlen|noten|notes|puntuaciones|calificaciones|notas)\b|"
    r"评分|分数|得分)[^\d\n.]{0,60}?"
    rf"({_DOT_NUMBER})(?:\s*,\s*|{_PAIR_SEPARATOR})({_DOT_NUMBER})(?!\s*[,/]?\s*\d)"
)


def _parse_pair(line: str) -> tuple[float, float] | None:
    """Return the two numbers of which a line consists."""
    for pattern in _PAIR_LINES:
        match = pattern.fullmatch(line.strip())
        # A name before the numbers: its own digit may be one of them.
        if match is not None and not any(
            (name_match := name.search(line.strip())) and name_match.start() <= match.start("one")
            for name in _ANSWER_NAMES
        ):
            return _to_float(match["one"]), _to_float(match["other"])
    return None


def _find_named_pairs(text: str) -> set[tuple[float, float]]:
    """Return the pairs that a reply gives by naming each answer, or both together."""
    for name, mark in zip(_ANSWER_NAMES, (_FIRST_MARK, _SECOND_MARK), strict=True):
        text = name.sub(mark, text)
    ratings = [_find_ratings_beside(text, mark) for mark in (_FIRST_MARK, _SECOND_MARK)]
    if not all(ratings):
        ratings = [_find_ratings_under(text, mark) for mark in (_FIRST_MARK, _SECOND_MARK)]
    pairs = {(first, second) for first in ratings[0] for second in ratings[1]}
    if not pairs:
        pairs = {
            (_to_float(match[1]), _to_float(match[2])) for match in _RATINGS_TOGETHER.finditer(text)
        }
    return pairs


def _find_ratings_beside(text: str, mark: str) -> set[float]:
    """Return the ratings beside a name: "Assistant 1: 8", "8 for Assistant 1"."""
    ratings = set()
    for match in re.finditer(mark, text):
        gap = _WORDS_BEFORE_RATING.match(text, match.end())
        end = gap.end() if gap is not None else match.end()
        number = re.compile(rf"{_COMMA_NUMBER}(?![\d.]\d)").match(text, end)
        if number is not None and _STATEMENT_END.match(text, number.end()):
            ratings.add(_to_float(number[0]))
    for number in re.finditer(
        rf"(?<![\d.,])({_COMMA_NUMBER})\s*{_UNIT}?\s*(?:for|to|für|pour|para|an|给)\s+(?:the\s+)?{mark}",
        text,
    ):
        ratings.add(_to_float(number[1]))
    return ratings


def _find_ratings_under(text: str, mark: str) -> set[float]:
    """Return the ratings in the parts of a reply under a name as heading."""
    parts = re.split(rf"^(?=\W{{0,6}}[{_FIRST_MARK}{_SECOND_MARK}])", text, flags=re.MULTILINE)
    return {
        _to_float(number[1])
        for part in parts
        if re.match(rf"\W*{mark}", part)
        for number in re.finditer(
            rf"(?:{_RATING_WORDS}|note|nota|{_CHINESE_RATING_WORDS})\s*[:=]\s*({_COMMA_NUMBER})(?!\d)",
            part,
        )
    }


def _to_float(number: str) -> float:
    return float(number.replace(",", "."))


def _keep_in_bounds(pair: tuple[float, float]) -> tuple[float, float] | None:
    return pair if all(1 <= rating <= 10 for rating in pair) else None
