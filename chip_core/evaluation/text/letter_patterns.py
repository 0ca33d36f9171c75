"""The words with which `letters` reads a choice: English, Chinese, German, French, Spanish."""

from __future__ import annotations

import re
from typing import Final

_IGNORECASE = re.IGNORECASE
# A letter alone, in brackets or quotes or not, and not part of a word (`C'est`, `B-cell`). `\b`
# does not suffice: a Chinese word may be right before it.
_BEFORE = r"(?<![A-Za-z0-9À-ÿ])(?<![A-Za-zÀ-ÿ]['-])"
_AFTER = r"(?![A-Za-z0-9À-ÿ]|['-][A-Za-zÀ-ÿ])"
_OPENING = r"[\"'“«(\[{<]{0,3}"
_CLOSING = r"[\"'”»)\]}>]{0,3}"
_LETTER = rf"{_BEFORE}{_OPENING}([A-Ja-j]){_AFTER}{_CLOSING}"
_UPPER_LETTER = rf"{_BEFORE}{_OPENING}[A-J]{_AFTER}{_CLOSING}"
_NOUN = (
    r"(?:options?|choices?|letters?|answers?|alternatives?|statements?|antwort(?:möglichkeit)?"
    r"|buchstabe|auswahl|réponse|lettre|proposition|choix|respuesta|opción|letra|alternativa"
    r"|inciso|literal|选项|选择|答案)"
)
#: Words between the name of an answer and its letter.
_FILLER = (
    rf"(?:\s|[:,*=\"']|(?:[a-z]{{2,12}}ly|the|clearly|most|likely|probably|definitely|therefore"
    rf"|thus|indeed|simply|in|fact|letter|to be|that of|given by|die|der|la|le|el|l'|bien|donc"
    rf"|claramente|eindeutig|wohl|{_NOUN})"
    rf"(?![A-Za-zÀ-ÿ])|(?<=l')|(?:选项|选择|选))*"
)
_COPULA = (
    r"(?:(?<![A-Za-zÀ-ÿ])(?:is|was|are|would be|should be|must be|has to be|will be|could only be"
    r"|being|as|remains|ist|lautet|wäre|est|serait|es|sería|sera|será)(?![A-Za-zÀ-ÿ])|:|=+>?|→|⇒"
    r"|-{1,2}>|\s[-–—]\s|应?该?当?是|为|应为|应选|选)"
)
ANSWER_LABELS: Final = (
    # the answer is B; Antwort: B; 答案是B
    re.compile(
        rf"(?:answer|choice|option|solution|response|selection|pick|conclusion|antwort|lösung"
        rf"|richtig|korrekt|réponse|choix|respuesta|opción|elección|correcta|correct|right|答案"
        rf"|选项|选择)(?:(?!\b(?:not|n't|isn't|never|nicht|pas"
        rf"|no)\b)[^\n.!?;:]){{0,60}}?\s{{0,3}}{_COPULA}"
        rf"{_FILLER}{_LETTER}",
        _IGNORECASE,
    ),
    # answer B
    re.compile(
        rf"(?:(?<![A-Za-z])ans\.?|answer|antwort|réponse|respuesta|答案|答|故选|应选"
        rf"|选择?)\s{{0,3}}:?\s{{0,3}}{_LETTER}",
        _IGNORECASE,
    ),
    # I choose B
    re.compile(
        rf"(?<![A-Za-zÀ-ÿ])(?:choos(?:e|ing)|chose|pick(?:ed|ing)?|select(?:ed|ing)?|going with"
        rf"|go with|went with|opt(?:ing)? for|vote for|settle on|stick with|say|guess|believe"
        rf"|think|wähle|nehme|tippe auf|choisis|opte pour|dirais|elijo|escojo|selecciono|diría"
        rf"|me quedo con)"
        rf"(?:\s+(?:that|it is|it's|it must be|für|on))?{_FILLER}{_LETTER}",
        _IGNORECASE,
    ),
    # ich würde B wählen
    re.compile(
        rf"(?:würde|werde|möchte)\s+(?:{_NOUN}\s+)?{_LETTER}\s+(?:wählen|nehmen|sagen|ankreuzen)",
        _IGNORECASE,
    ),
    # so B; must be B; leaves B
    re.compile(
        rf"(?:(?<![A-Za-zÀ-ÿ])(?:so|thus|therefore|hence|it's|it is|it must be|that's|that is"
        rf"|this is|must be|should be|leav(?:es|ing)(?: us with)?|namely|i\.e\.|corresponds? to"
        rf"|match(?:es|ing)?|which is|points? to|daher|somit|folglich|also|das ist|es ist|bleibt"
        rf"|entspricht|donc|c'est|ainsi|correspond à|reste|así que|por (?:lo )?tanto|entonces|es"
        rf"|corresponde a|queda)"
        rf"(?![A-Za-zÀ-ÿ])|→|⇒|=>|->|∴|所以|因此|故|就是)[,:]?{_FILLER}{_LETTER}(?=\W*(?:$"
        rf"|[.!,;:\n]))",
        _IGNORECASE | re.MULTILINE,
    ),
)
#: B is correct; B ist richtig; B正确
CORRECT: Final = re.compile(
    rf"{_LETTER}[.:]?(?:,[^,\n.!?;]{{1,40}},)?"
    rf"(?:[ \t]+(?:(?!{_UPPER_LETTER})[^\n.!?]){{1,60}}?)??[ \t]{{0,3}}"
    r"(?:(?<![A-Za-zÀ-ÿ])(?:is|are|seems(?: to be)?|looks|must be|would be|should be"
    r"|appears(?: to be)?|ist|scheint|est|semble|es|parece|sería)|是|为|[-–—:(✓✔✅])[ \t]{0,3}"
    r"(?:(?:clearly|definitely|indeed|therefore|thus|most likely|probably|also|obviously|the|a|la"
    r"|le|die|der|el|eindeutig|bien|claramente|most)\s+){0,4}"
    r"(?:correct|right|best|true|answer|accurate|appropriate|suitable|one|only (?:option|choice"
    r"|answer|one)|likely|richtige?|korrekte?|beste|juste|bonne|bon|vraie?|exacte?|meilleure?"
    r"|correct[oa]|respuesta|réponse|mejor|verdader[oa]|adecuad[oa]|[✓✔✅]|正确|对的"
    r"|答案)(?![A-Za-zÀ-ÿ])"
    rf"|{_LETTER}\s?(?:正确|是对的|对|[✓✔✅])",
    _IGNORECASE,
)
_NAMED_LETTER = rf"(?:{_NOUN}\s+)?{_UPPER_LETTER}"
_LETTER_LIST = (
    rf"{_NAMED_LETTER}(?:(?:\s*[,/、]\s*{_NAMED_LETTER}){{0,9}}"
    rf"\s*,?\s*(?:/|&|、|and|or|nor|und|oder|noch|et|ou|ni|y|o|e|和|或)\s*{_NAMED_LETTER})?"
)
REJECTED: Final = (
    # A, C and D are wrong; option A, the first, is not right
    re.compile(
        rf"({_LETTER_LIST})[.:)]?(?:,[^,\n.!?;]{{1,40}},)?\s*"
        rf"(?:(?!(?:because|since|as|which|that|while|but|weil|da|car|que|porque)\b"
        rf"|{_UPPER_LETTER})[^\n.!?;,]){{0,60}}?"
        r"(?:(?<![A-Za-zÀ-ÿ])(?:is|are|was|were|can|could|does|do|would|must|seems?|looks?|ist"
        r"|sind|est|sont|es|son|kann|scheid\w+|ne|n')\s*(?:(?:be|both|all|also|clearly|definitely"
        r"|therefore|además|beide|been) ){0,3}"
        r"(?:not|cannot|wrong|incorrect|false|ruled out|eliminated|excluded|dismissed|rejected"
        r"|unlikely|irrelevant|implausible|impossible|out|too \w+|n't|nicht|falsch|ausgeschlossen"
        r"|aus|(?:est|sont)? ?pas|faux|fausses?|incorrecte?s?|exclue?s?|éliminée?s?|falsas?"
        r"|incorrectas?|descartad[ao]s?)(?![A-Za-zÀ-ÿ])|(?<![A-Za-zÀ-ÿ])(?:is|are|does|do|was|ca"
        r"|wo|would|could)n't|(?<![A-Za-zÀ-ÿ])(?:cannot|no (?:es|son|puede))"
        r"(?![A-Za-zÀ-ÿ])|不|错)",
        _IGNORECASE,
    ),
    # A: incorrect
    re.compile(
        rf"({_LETTER_LIST})[.:)]?[ \t:–—-]*(?:(?:wrong|incorrect|false|ruled out|eliminated|falsch"
        rf"|faux|incorrecto"
        r"|falso)(?![A-Za-zÀ-ÿ])|[✗✘❌])",
        _IGNORECASE,
    ),
    # not A; rule out A and B
    re.compile(
        r"(?:(?<![A-Za-zÀ-ÿ])(?:not|n't|never|neither|rul(?:e|es|ed|ing) out|eliminat\w+|exclud\w+"
        r"|discard\w*|reject\w*|dismiss\w*|instead of|rather than|unlike|except|but not|nicht"
        r"|statt|weder|pas|plutôt que|élimin\w+|exclu\w*|ni|descart\w+|no es|no)(?![A-Za-zÀ-ÿ])"
        r"|n't|不是|不选|排除|而非)"
        rf"[\s:]*(?:(?:the|it's|be|die|la|le|both|all|{_NOUN})\s+){{0,3}}({_LETTER_LIST})",
        _IGNORECASE,
    ),
)
#: Words that take back a letter: the one right after them counts.
REVISION: Final = re.compile(
    r"(?<![A-Za-zÀ-ÿ])(?:wait|actually|correction|scratch that|sorry|i meant?|no"
    r"|on second thoughts?|rather|make that|oops|hold on|let me re\w+|but|hmm+|nein|moment"
    r"|korrektur|doch|eher|non|pardon|en fait|plutôt|attendez|espera|perdón|en realidad"
    r"|mejor dicho|corrección|corrijo)(?![A-Za-zÀ-ÿ])[\s,.:;!\-–—]*|(?:不对|不,|等等|其实|更正"
    r"|应该是)[\s,.:;!]*",
    _IGNORECASE,
)
#: Another letter beside one: no choice between them.
ALTERNATIVE: Final = re.compile(
    rf"\s*(?:,|/|&|\+|or|and|und|oder|et|ou|o|y|和|或(?:者)?|、)\s*(?:{_NOUN}\s+)?{_LETTER}"
    r"(?=\s*(?:$|[.,;!?)/&\n]|are\b|sind\b|sont\b|son\b|or\b|and\b|und\b|oder\b|et\b|ou\b|y\b"
    r"|o\b))",
)
#: What may follow an A, an I or a small letter that is no article, pronoun or part of a sentence.
LETTER_END: Final = re.compile(
    r"\s*(?:$|[.,;:!?)\]\n\"'”—–✓✔✅]|[-–—]\s|\((?=\w)|(?:because|since|as|due|for|with|given"
    r"|which|based|weil|da|denn|car|parce|puisque|porque|ya que|pues|因为|,|。)(?![A-Za-zÀ-ÿ])"
    r"|[\u4e00-\u9fff])",
    _IGNORECASE,
)
#: The letter that an answer begins with.
LEADING: Final = re.compile(
    rf"(?:(?:{_NOUN}|[a-z]{{2,12}}ly|so|well|ok(?:ay)?|sure|hmm+|definitely|clearly|probably"
    rf"|assistant|la|le|die)(?![A-Za-zÀ-ÿ])[\s:,!-]*)*"
    rf"{_LETTER}(?P<tail>.?)",
    _IGNORECASE | re.DOTALL,
)
#: A word before a letter that does not make it a name ("solution B", "vitamin C").
NO_NAME_BEFORE: Final = re.compile(
    rf"(?:^|[\n.,;:!?()\[\]\"'=→>-]|(?<![A-Za-zÀ-ÿ])(?:is|it|be|are|was|option|options|choice"
    rf"|choices|choose|pick|select|answer|letter|with|[a-z]{{2,12}}ly|but|either|both|neither"
    rf"|between|unlike|like|than|only|just|so|thus|therefore|hence|and|or|say|for|to|it's|that's"
    rf"|means|{_NOUN}|ist|lautet|also|daher|est|donc|la|es|así que|c'est|wähle|elijo|choisis)"
    rf"|[\u4e00-\u9fff])\s*$",
    _IGNORECASE,
)
#: A lone capital letter.
LONE_LETTER: Final = re.compile(rf"{_BEFORE}{_OPENING}([A-J]){_AFTER}{_CLOSING}")
#: A letter is the whole answer.
ONLY_LETTER: Final = re.compile(rf"\W*(?:{_NOUN}\W*)?([A-J])\W*", _IGNORECASE)
#: One of a list's options: `A. a bowl`.
LIST_ENTRY: Final = re.compile(
    rf"(?:^|(?<=[\s,;])){_OPENING}([A-Ja-j]){_CLOSING}[.:)]?\s+", re.MULTILINE
)
#: The end of a clause.
CLAUSE: Final = re.compile(r"[.,;:!?\n]|\b(?:but|so|thus|sondern|mais|sino|pero|aber)\b|而是|但")
#: Words that reject an option whose text follows in the same clause.
NEGATION: Final = re.compile(
    r"(?<![A-Za-zÀ-ÿ])(?:not(?! only)|cannot|no|neither|nor|never|rather than|instead of|unlike"
    r"|than|nicht|kein\w*|pas|ni|statt|rul(?:e|es|ed|ing) out|exclud\w+"
    r"|eliminat\w+)(?![A-Za-zÀ-ÿ])|n't\b|不|排除",
    _IGNORECASE,
)
#: Words before an option's text that is named as the answer.
TEXT_LABEL: Final = re.compile(
    rf"(?:answer|choice|option|solution|conclusion|antwort|lösung|réponse|respuesta|opción"
    rf"|correcta|答案)"
    rf"(?:(?!\b(?:not|n't|isn't|nicht|pas|no)\b)[^\n.!?;:]){{0,60}}?\s{{0,3}}{_COPULA}\s*(?:(?:the|an?"
    rf"|la|le|el|die|der|das|une?|eine?)\s+)?",
    _IGNORECASE,
)
#: Words that make the second of two choices count.
DECISION: Final = re.compile(
    rf"{REVISION.pattern}|final|correct|best|so\b|thus|therefore|hence|→|instead|daher|donc|por"
    rf"|所以|因此|最终|richtig|bonne",
    _IGNORECASE,
)
#: A letter that is named together with the next one.
CONJUNCTION: Final = re.compile(
    rf"{_BEFORE}{_OPENING}([A-J]){_AFTER}{_CLOSING}\s*(?:,|/|&|and|or|und|oder|et|ou|y|o|和|或"
    rf"|、)\s*(?:{_NOUN}\s+)?{_OPENING}$"
)
