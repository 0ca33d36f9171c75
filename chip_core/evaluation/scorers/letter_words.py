"""The words by which `letters` reads a choice: English, Chinese, German, French, Spanish."""

from __future__ import annotations

import re
from typing import Final

_I = re.IGNORECASE
# A letter by itself, in brackets or quotes or not: no part of a word (`C'est`, `B-cell`).
_BEFORE = r"(?<![A-Za-z0-9À-ÿ])(?<![A-Za-zÀ-ÿ]['-])"
_AFTER = r"(?![A-Za-z0-9À-ÿ]|['-][A-Za-zÀ-ÿ])"
_QUOTED = r"[\"'“«(\[{<]{0,3}"
_CLOSED = r"[\"'”»)\]}>]{0,3}"
_LETTER = rf"{_BEFORE}{_QUOTED}([A-Ja-j]){_AFTER}{_CLOSED}"
_UPPER = rf"{_BEFORE}{_QUOTED}[A-J]{_AFTER}{_CLOSED}"
_NOUN = (
    r"(?:options?|choices?|letters?|answers?|alternatives?|statements?|antwort(?:möglichkeit)?"
    r"|buchstabe|auswahl|réponse|lettre|proposition|choix|respuesta|opción|letra|alternativa|inciso"
    r"|literal|选项|选择|答案)"
)
#: Between what names an answer and its letter.
_FILL = (
    rf"(?:\s|[:,*=\"']|(?:[a-z]{{2,12}}ly|the|clearly|most|likely|probably|definitely|therefore|thus|indeed|simply|in|fact"
    rf"|letter|to be|that of|given by|die|der|la|le|el|l'|bien|donc|claramente|eindeutig|wohl|{_NOUN})"
    rf"(?![A-Za-zÀ-ÿ])|(?<=l')|(?:选项|选择|选))*"
)
_IS = (
    r"(?:(?<![A-Za-zÀ-ÿ])(?:is|was|are|would be|should be|must be|has to be|will be|could only be|being|as"
    r"|remains|ist|lautet|wäre|est|serait|es|sería|sera|será)(?![A-Za-zÀ-ÿ])|:|=+>?|→|⇒|-{1,2}>"
    r"|\s[-–—]\s|应?该?当?是|为|应为|应选|选)"
)
LABELS: Final = (
    # the answer is B; Antwort: B; 答案是B
    re.compile(
        rf"(?:answer|choice|option|solution|response|selection|pick|conclusion|antwort|lösung"
        rf"|richtig|korrekt|réponse|choix|respuesta|opción|elección|correcta|correct|right|答案|选项"
        rf"|选择)(?:(?!\b(?:not|n't|isn't|never|nicht|pas|no)\b)[^\n.!?;:]){{0,60}}?\s{{0,3}}{_IS}"
        rf"{_FILL}{_LETTER}",
        _I,
    ),
    # answer B; option (B): not in every sentence a choice, see _CHOOSES
    re.compile(
        rf"(?:answer|antwort|réponse|respuesta|答案|答|故选|应选|选择?)\s{{0,3}}:?\s{{0,3}}{_LETTER}",
        _I,
    ),
    re.compile(
        rf"(?<![A-Za-zÀ-ÿ])(?:choos(?:e|ing)|chose|pick(?:ed|ing)?|select(?:ed|ing)?|going with|go with"
        rf"|went with|opt(?:ing)? for|vote for|settle on|stick with|say|guess|believe|think|wähle|nehme"
        rf"|tippe auf|choisis|opte pour|dirais|elijo|escojo|selecciono|diría|me quedo con)"
        rf"(?:\s+(?:that|it is|it's|it must be|für|on))?{_FILL}{_LETTER}",
        _I,
    ),
    # so B; must be B; leaves B
    re.compile(
        rf"(?:(?<![A-Za-zÀ-ÿ])(?:so|thus|therefore|hence|it's|it is|it must be|that's|that is|this is|must be"
        rf"|should be|leav(?:es|ing)(?: us with)?|namely|i\.e\.|corresponds? to|match(?:es|ing)?|which is"
        rf"|points? to|daher|somit|folglich|also|das ist|es ist|bleibt|entspricht|donc|c'est|ainsi"
        rf"|correspond à|reste|así que|por (?:lo )?tanto|entonces|es|corresponde a|queda)"
        rf"(?![A-Za-zÀ-ÿ])|→|⇒|=>|->|∴|所以|因此|故|就是)[,:]?{_FILL}{_LETTER}(?=\W*(?:$|[.!,;:\n]))",
        _I | re.MULTILINE,
    ),
)
#: B is correct; B ist richtig; B正确
CORRECT: Final = re.compile(
    rf"{_LETTER}[.:]?(?:,[^,\n.!?;]{{1,40}},)?(?:[ \t]+(?:(?!{_UPPER})[^\n.!?]){{1,60}}?)??[ \t]{{0,3}}"
    r"(?:(?<![A-Za-zÀ-ÿ])(?:is|are|seems(?: to be)?|looks|must be|would be|should be|appears(?: to be)?|ist|scheint"
    r"|est|semble|es|parece|sería)|是|为|[-–—:(✓✔✅])[ \t]{0,3}"
    r"(?:(?:clearly|definitely|indeed|therefore|thus|most likely|probably|also|obviously|the|a|la|le|die"
    r"|der|el|eindeutig|bien|claramente|most)\s+){0,4}"
    r"(?:correct|right|best|true|answer|accurate|appropriate|suitable|one|only (?:option|choice|answer|one)"
    r"|likely|richtige?|korrekte?|beste|juste|bonne|bon|vraie?|exacte?|meilleure?|correct[oa]|respuesta"
    r"|réponse|mejor|verdader[oa]|adecuad[oa]|[✓✔✅]|正确|对的|答案)(?![A-Za-zÀ-ÿ])"
    rf"|{_LETTER}\s?(?:正确|是对的|对|[✓✔✅])",
    _I,
)
_NAMED = rf"(?:{_NOUN}\s+)?{_UPPER}"
_LIST = (
    rf"{_NAMED}(?:(?:\s*[,/、]\s*{_NAMED})*"
    rf"\s*,?\s*(?:/|&|、|and|or|nor|und|oder|noch|et|ou|ni|y|o|e|和|或)\s*{_NAMED})?"
)
REJECTED: Final = (
    # A, C and D are wrong; option A, the first, is not right
    re.compile(
        rf"({_LIST})[.:)]?(?:,[^,\n.!?;]{{1,40}},)?\s*"
        rf"(?:(?!(?:because|since|as|which|that|while|but|weil|da|car|que|porque)\b|{_UPPER})[^\n.!?;,]){{0,60}}?"
        r"(?:(?<![A-Za-zÀ-ÿ])(?:is|are|was|were|can|could|does|do|would|must|seems?|looks?|ist|sind|est|sont|es|son"
        r"|kann|scheid\w+|ne|n')\s*(?:(?:be|both|all|also|clearly|definitely|therefore|además|beide|been) ){0,3}"
        r"(?:not|cannot|wrong|incorrect|false|ruled out|eliminated|excluded|dismissed|rejected|unlikely"
        r"|irrelevant|implausible|impossible|out|too \w+|n't|nicht|falsch|ausgeschlossen|aus|(?:est|sont)? ?pas"
        r"|faux|fausses?|incorrecte?s?|exclue?s?|éliminée?s?|falsas?|incorrectas?|descartad[ao]s?)(?![A-Za-zÀ-ÿ])"
        r"|(?<![A-Za-zÀ-ÿ])(?:is|are|does|do|was|ca|wo|would|could)n't|(?<![A-Za-zÀ-ÿ])(?:cannot|no (?:es|son|puede))"
        r"(?![A-Za-zÀ-ÿ])|不|错)",
        _I,
    ),
    # A: incorrect
    re.compile(
        rf"({_LIST})[.:)]?[ \t:–—-]*(?:(?:wrong|incorrect|false|ruled out|eliminated|falsch|faux|incorrecto"
        r"|falso)(?![A-Za-zÀ-ÿ])|[✗✘❌])",
        _I,
    ),
    re.compile(
        r"(?:(?<![A-Za-zÀ-ÿ])(?:not|n't|never|neither|rul(?:e|es|ed|ing) out|eliminat\w+|exclud\w+|discard\w*"
        r"|reject\w*|dismiss\w*|instead of|rather than|unlike|except|but not|nicht|statt|weder|pas|plutôt que"
        r"|élimin\w+|exclu\w*|ni|descart\w+|no es|no)(?![A-Za-zÀ-ÿ])|n't|不是|不选|排除|而非)"
        rf"[\s:]*(?:(?:the|it's|be|die|la|le|both|all|{_NOUN})\s+){{0,3}}({_LIST})",
        _I,
    ),
)
TAKEN_BACK: Final = re.compile(
    r"(?<![A-Za-zÀ-ÿ])(?:wait|actually|correction|scratch that|sorry|i meant?|no|on second thoughts?|rather|make that"
    r"|oops|hold on|let me re\w+|but|hmm+|nein|moment|korrektur|doch|eher|non|pardon|en fait|plutôt|attendez"
    r"|espera|perdón|en realidad|mejor dicho|corrección|corrijo)(?![A-Za-zÀ-ÿ])[\s,.:;!\-–—]*"
    r"|(?:不对|不,|等等|其实|更正|应该是)[\s,.:;!]*",
    _I,
)
ALTERNATIVE: Final = re.compile(
    rf"\s*(?:,|/|&|\+|or|and|und|oder|et|ou|o|y|和|或(?:者)?|、)\s*(?:{_NOUN}\s+)?{_LETTER}"
    r"(?=\s*(?:$|[.,;!?)/&\n]|are\b|sind\b|sont\b|son\b|or\b|and\b|und\b|oder\b|et\b|ou\b|y\b|o\b))",
)
#: What may follow an A, an I or a small letter that is no article, pronoun or part of a sentence.
ENDED: Final = re.compile(
    r"\s*(?:$|[.,;:!?)\]\n\"'”—–✓✔✅]|[-–—]\s|\((?=\w)|(?:because|since|as|due|for|with|given|which|based|weil|da|denn"
    r"|car|parce|puisque|porque|ya que|pues|因为|,|。)(?![A-Za-zÀ-ÿ])|[\u4e00-\u9fff])",
    _I,
)
START: Final = re.compile(
    rf"(?:(?:{_NOUN}|[a-z]{{2,12}}ly|so|well|ok(?:ay)?|sure|hmm+|definitely|clearly|probably|assistant|la|le|die)(?![A-Za-zÀ-ÿ])[\s:,!-]*)*"
    rf"{_LETTER}(?P<tail>.?)",
    _I | re.DOTALL,
)
#: A word before a letter that does not make it the name of something ("solution B", "vitamin C").
NAMES_NONE: Final = re.compile(
    rf"(?:^|[\n.,;:!?()\[\]\"'=→>-]|(?<![A-Za-zÀ-ÿ])(?:is|be|are|was|option|options|choice|choices|choose|pick|select"
    rf"|answer|letter|with|[a-z]{{2,12}}ly|but|either|both|neither|between|unlike|like|than|only|just|so|thus|therefore|hence|and|or|say|for|to|it's|that's|means|{_NOUN}|ist|lautet|also|daher"
    rf"|est|donc|la|es|así que|c'est|wähle|elijo|choisis)|[\u4e00-\u9fff])\s*$",
    _I,
)
#: A letter that stands by itself, in capitals.
MENTION: Final = re.compile(rf"{_BEFORE}{_QUOTED}([A-J]){_AFTER}{_CLOSED}")
ONLY: Final = re.compile(rf"\W*(?:{_NOUN}\W*)?([A-J])\W*", _I)
#: One of a list's options: `A. a bowl`.
LISTED: Final = re.compile(rf"(?:^|(?<=[\s,;])){_QUOTED}([A-Ja-j]){_CLOSED}[.:)]?\s+", re.MULTILINE)
CLAUSE: Final = re.compile(r"[.,;:!?\n]|\b(?:but|so|thus|sondern|mais|sino|pero|aber)\b|而是|但")
#: What rejects an option whose text follows in the same clause.
NOT: Final = re.compile(
    r"(?<![A-Za-zÀ-ÿ])(?:not(?! only)|cannot|no|neither|nor|never|rather than|instead of|unlike|than|nicht|kein\w*|pas|ni|statt"
    r"|rul(?:e|es|ed|ing) out|exclud\w+|eliminat\w+)(?![A-Za-zÀ-ÿ])|n't\b|不|排除",
    _I,
)
#: What stands before an option's text that is named as the answer.
TEXT_LABEL: Final = re.compile(
    rf"(?:answer|choice|option|solution|conclusion|antwort|lösung|réponse|respuesta|opción|correcta|答案)"
    rf"(?:(?!\b(?:not|n't|isn't|nicht|pas|no)\b)[^\n.!?;:]){{0,60}}?\s{{0,3}}{_IS}\s*(?:(?:the|an?|la|le|el|die|der|das"
    rf"|une?|eine?)\s+)?",
    _I,
)
#: What makes the second of two choices the one that counts.
DECIDES: Final = re.compile(
    rf"{TAKEN_BACK.pattern}|final|correct|best|so\b|thus|therefore|hence|→|instead|daher|donc|por|所以|因此|最终|richtig|bonne",
    _I,
)
#: A letter that is named together with the one that follows.
TOGETHER: Final = re.compile(
    rf"{_BEFORE}{_QUOTED}([A-J]){_AFTER}{_CLOSED}\s*(?:,|/|&|and|or|und|oder|et|ou|y|o|和|或|、)\s*(?:{_NOUN}\s+)?{_QUOTED}$"
)
