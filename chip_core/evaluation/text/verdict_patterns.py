"""The words with which `verdicts` reads yes and no: English, Chinese, German, French, Spanish.

All are case-insensitive patterns; `’` is replaced by `'` before they are used.
"""

from __future__ import annotations

import re
from typing import Final

_IGNORECASE: Final = re.IGNORECASE


def _any_of(*forms: str) -> str:
    return "(?:" + "|".join(forms) + ")"


#: Words for certainty, which do not change the verdict.
_DEGREE = _any_of(
    "most", "very", "quite", "probably", "likely", "almost", "certainly", "definitely", "clearly",
    "obviously", "absolutely", "surely", "really", "of course", "indeed", "unfortunately", "sadly",
    "simply", "just", "apparently", "actually", "in fact", "there", "an?", "the", "hard", "firm",
    "big", "strong", "resounding", "clear", "definite", "again", "still", "also", "(?:from"
    "|for) me", "sir", "ma'am",
    "please", "here", "for sure", "for certain", "then", "too", "in this case", "honestly",
    "wahrscheinlich", "vermutlich", "sicher", "ganz", "eindeutig", "definitiv", "leider",
    "natürlich", "ein", "eindeutiges", "klares",
    "probablement", "certainement", "sans doute", "clairement", "bien sûr", "malheureusement",
    "évidemment", "une?", "mais", "que",
    "probablemente", "seguramente", "claramente", "desde luego", "por supuesto", "claro",
    "lamentablemente", "obviamente",
)  # fmt: skip
#: Words that are a verdict in any clause of their own.
_STRICT_YES = _any_of(
    "y+e+s+(?: y+e+s+)*", "yep", "yeah", "yea", "yup", "aye", "true", "affirmative", "present",
    "ja", "jawohl", "jap", "oui", "ouais", "sí", "sip", "✓", "✔", "✔️", "✅", "☑", "👍",
)  # fmt: skip
_STRICT_NO = _any_of(
    "n+o+(?: n+o+)*", "nope", "nah", "naw", "nay", "false", "absent", "none", "neither",
    "nein", "nee", "nö", "non", "✗", "✘", "❌", "✖", "✖️", "👎", "🚫",
    "(?:certainly|definitely|absolutely|of course|probably|likely|surely|clearly) not",
    "not at all", "not really", "not (?:present|visible|there|detected|found)", "undetected",
)  # fmt: skip
#: Words that are a verdict as the first clause, or as the whole answer.
_LOOSE_YES = _any_of(
    "y", "correct", "right", "positive", "indeed", "absolutely", "definitely", "certainly",
    "exactly", "totally", "sure(?: is| does"
    "| thing)?", "of course", "present", "visible", "exists",
    "probably", "likely", "most likely", "without (?:a |any )?(?:doubt|question)", "precisely",
    "(?:there is )?no (?:doubt|question)(?: about (?:it|that))?", "undoubtedly", "naturally",
    "(?:that|this|it)(?:'s| is) (?:right|correct|true|so|(?:indeed )?the case|accurate)",
    "(?:that|this|the) (?:statement|claim|description|observation)? ?is "
    "(?:right|correct|true|accurate)",
    "(?:it )?(?:does )?(?:looks?|seems?|(?:would )?appears?|would seem)(?: like it| so"
    "| that way)",
    "you(?:'re| are) (?:right|correct)", "i (?:think|believe|guess|suppose) so", "i (?:do|can)",
    "(?:it|he|she|this|that|there|one)(?: really| indeed| certainly| definitely)? "
    "(?:is|does|has|was|can|exists)(?: indeed| there)?",
    "(?:they|there|these|those)(?: really| indeed| certainly| definitely)? "
    "(?:are|do|have|were|can)(?: indeed)?",
    "doch", "genau", "richtig", "(?:das )?stimmt", "so ist es", "wahr", "korrekt", "klar",
    "natürlich", "selbstverständlich", "auf jeden fall", "das ist (?:richtig|korrekt|wahr)",
    "ich (?:denke|glaube)(?: schon| ja)", "gibt es", "tatsächlich", "freilich", "vorhanden",
    "si", "vrai", "exact", "exactement", "bien sûr(?: que oui)?", "effectivement", "tout à fait",
    "absolument", "en effet", "c'est (?:le cas|vrai|exact|correct|ça)", "évidemment",
    "je (?:pense|crois) que oui", "il y en a", "présente?",
    "claro(?: que sí)?", "así es", "correcto", "cierto", "(?:eso )?es (?:cierto|correcto|verdad)",
    "verdadero", "efectivamente", "por supuesto(?: que sí)?", "desde luego", "exacto", "afirmativo",
    "creo que sí", "(?:sí )?(?:los? |las? )?hay", "en efecto", "presente",
)  # fmt: skip
_LOOSE_NO = _any_of(
    "n", "not", "wrong", "incorrect", "untrue", "negative", "missing", "invisible", "never",
    "nowhere(?: .{1,40})?", "nothing(?: .{1,40})?", "(?:none"
    "|neither) .{1,60}", "no one", "nobody",
    "zero(?: .{1,20})?", "not (?:correct|true|right|so|quite|exactly|likely|present|visible|there"
    "|here|seen|found|detected|shown|that i (?:can|could)? ?(?:see|tell)|in (?:this|the) "
    "(?:image|picture|photo))", "by no means", "no way", "not (?:a single|even one) .{1,40}",
    "most likely not", "i (?:do not|don't) (?:think|believe) so", "(?:i'm |i am )?afraid not",
    "i (?:think|guess) not",
    "(?:it )?(?:seems|appears|would appear|would seem) not",
    "(?:it )?(?:does not|doesn't) (?:look|seem|appear)(?: like it| so| that way)", "i (?:do not"
    "|don't|cannot|can't|can not)", "hardly",
    "(?:that|this|it)(?:'s| is) (?:false|wrong|incorrect|untrue|inaccurate)",
    "(?:that|this|the) (?:statement|claim|description|observation)? ?is "
    "(?:false|wrong|incorrect|untrue|inaccurate)",
    "falsch", "(?:das )?stimmt nicht", "keineswegs", "auf keinen fall", "überhaupt nicht",
    "gar nicht", "nicht(?: wirklich| vorhanden| sichtbar| zu sehen)?", "unwahr", "nichts",
    "kein(?:e[nmrs]?|s)?(?: .{1,40})?", "das ist (?:falsch|nicht .{1,30})", "nie",
    "ich (?:denke|glaube) nicht", "negativ",
    "pas (?:du tout|vraiment|ici|que je sache)", "faux", "aucune?(?: .{1,40})?", "nullement",
    "rien", "absolument pas", "bien sûr que non", "jamais", "négatif", "absente?", "non plus",
    "je (?:pense|crois) que non", "certainement pas", "ni l'une? ni l'autre", "inexact",
    "falso", "incorrecto", "ningun[oa](?: .{1,40})?", "ningún(?: .{1,40})?", "en absoluto",
    "para nada", "claro que no", "tampoco", "nada", "negativo", "de ningún modo", "creo que no",
    "por supuesto que no", "ausente", "nunca",
)  # fmt: skip
STRICT_YES = re.compile(rf"(?:{_DEGREE} )*{_STRICT_YES}(?: {_DEGREE})*", _IGNORECASE)
STRICT_NO = re.compile(rf"(?:{_DEGREE} )*{_STRICT_NO}(?: {_DEGREE})*", _IGNORECASE)
LOOSE_YES = re.compile(rf"(?:{_DEGREE} )*{_LOOSE_YES}(?: {_DEGREE})*", _IGNORECASE)
LOOSE_NO = re.compile(rf"(?:{_DEGREE} )*{_LOOSE_NO}(?: {_DEGREE})*", _IGNORECASE)

#: A verdict that continues without a comma: "no there is not", "No dog".
LEADING_YES = re.compile(r"(?:y+e+s+|yep|yeah|yup|jawohl|oui|sí|ja)\b", _IGNORECASE)
LEADING_NO = re.compile(
    r"(?:n+o+|nope|nah|nein|non|neither|none|nothing|nowhere|absent|zero|nobody|weder|not (?:an?"
    r"|any|one|even)\b(?!.* but )|kein(?:e[nmrs]?)?|aucune?|ningun[oa]|ningún|ni un[ao]?)\b",
    _IGNORECASE,
)
#: Words with "no" or "not" that negate nothing.
FALSE_NEGATION = re.compile(
    r"\b(?:no (?:doubt|question|wonder|problem|worries|matter|need|fewer|less|more than)\b"
    r"(?: (?:about (?:it|that)|that))?|not (?:only|just|merely|simply|to mention|least|unlike"
    r"|one but)\b|nothing (?:but|less than|other than)|none other than|(?:cannot|can't"
    r"|can not) (?:help but|deny|be denied|miss|fail to|overlook|be overlooked)|not without"
    r"|undeniabl[ey]|nicht nur|(?:kein(?:en)?|ohne) zweifel|keine frage|non seulement|(?:n'est "
    r"|ne sont )?pas seulement|(?:sans |n'y a )?aucun doute|no (?:solo|sólo|solamente|únicamente)"
    r"|no (?:hay|cabe) (?:la menor |ninguna )?duda(?: de que)?"
    r"|sin (?:ninguna )?duda(?: alguna)?)\b",
    _IGNORECASE,
)
#: Words that may come before a verdict.
LEAD_IN = re.compile(
    r"(?:(?:well|hmm*|um+|uh|oh|ah|ok(?:ay)?|alright|so|thus|therefore|hence|then|and|but|also"
    r"|in (?:short|summary|conclusion|brief|other words)|to (?:conclude|summari[sz]e|sum up"
    r"|be (?:honest|precise|clear|exact|specific)|answer (?:your|the|this) question)|overall"
    r"|finally|ultimately|consequently|accordingly|sure|certainly|of course|(?:great"
    r"|good) question|let me (?:see|check|look|think)|let's see|(?:i'm |i am )?sorry|unfortunately"
    r"|apologies|(?:(?:final|short|my|the|correct|direct|simple|brief) )*(?:answer|verdict"
    r"|response|reply|conclusion|result|output|judge?ment)(?:'s)?(?: (?:to|for) (?:this|the|your"
    r"|that|it)"
    r"(?: question)?)?(?: (?:is|would be|should be|must be|will be|remains|here is))?|(?:it|that"
    r"|this)(?:'s| is| would be| must be)|i(?:'d| would|'ll| will| must| can"
    r"| have to)? (?:confidently )?"
    r"(?:say|answer|guess|reply|respond|conclude|think|believe|go with|lean towards?)"
    r"(?: that(?!'s| is))?(?: (?:with|is))?|assistant|ai|bot|model|asst|[aq](?=:)|nun|tja"
    r"|(?:meine |die )?antwort(?: (?:lautet|ist|wäre))?|daher|folglich|somit|kurz gesagt"
    r"|ich (?:würde|sage|denke|glaube|meine)(?: sagen)?(?: dass)?|entschuldigung|das (?:ist|wäre)"
    r"|(?:ma |la )?réponse(?: (?:est|serait))?|eh bien|je (?:dirais|pense|crois)(?: que)?|donc"
    r"|en résumé|bref|ainsi|désolée?|c'est|(?:mi |la )?respuesta(?: (?:es|sería))?|pues|bueno"
    r"|(?:yo )?diría(?: que)?|creo que|por (?:lo )?tanto|así que|en (?:resumen|conclusión)"
    r"|entonces|lo siento|es)"
    r"(?![\w'])\s*[,:;.\-–—=>→!\"]*\s*){1,8}",
    _IGNORECASE,
)
#: "Yes or no" names both and chooses none.
YES_OR_NO = re.compile(
    r"^\W*(?:yes[\s,]+no|no[\s,]+yes)\W*$|\bneither yes nor no\b|"
    r"[\"']?\b(?:yes|no|ja|nein|oui|non|s[ií])\b[\"']?\s*(?:/|or|oder|ou|o|\||and|und|et|y)\s*"
    r"[\"']?\b(?:yes|no|ja|nein|oui|non|s[ií])\b[\"']?|是\s*(?:/|或|还是)\s*(?:否|不是)|(?:有|是"
    r"|对)\s*(?:没|不)\s*(?:有|是|对)(?=.{0,40}[??])",
    _IGNORECASE,
)
#: Words before an answer that is named as one.
ANSWER_LABEL = re.compile(
    r"(?:\b(?:answer|verdict|conclusion|judge?ment|antwort|ergebnis|fazit|réponse|respuesta"
    r"|conclusión)\b[^\n.:!?;]{0,60}?\s{0,3}"
    r"(?::|\b(?:is|would be|should be|must be|ist|lautet|est|serait|es|sería)\b|=+>?|→|-{1,2}>?)"
    r"|(?:答案|回答|结论|结果)\s{0,3}(?:应?该?当?是|为|:|,)\s{0,3}:?|\bA:)\s*",
    _IGNORECASE,
)
#: Words that take back a verdict; after these, a statement of what is seen is one, too.
REVISION_BY_SIGHT = re.compile(
    r"\b(?:wait|correction|on second (?:thought|look)s?|scratch that|hold on|i was wrong"
    r"|my mistake|let me (?:re\w+|look again|check again|correct)|(?:up)?on (?:closer|re)[\w-]*"
    r"(?: (?:inspection|look|examination))?|looking (?:again|(?:more )?close(?:ly|r))"
    r"|moment(?: mal)?|halt|korrektur|bei genauerem hinsehen|attendez"
    r"|en y regardant(?: de plus près)?|espera|mejor dicho|corrijo|mirando (?:mejor|de cerca))\b"
    r"|等等|等一下|更正|仔细看",
    _IGNORECASE,
)
REVISION = re.compile(
    REVISION_BY_SIGHT.pattern
    + r"|\b(?:actually|sorry|i mean|rather|oops|no,(?= yes)|(?:nein|genauer),|eigentlich|doch nicht"
    r"|entschuldigung|en fait|pardon|plutôt|en realidad|perdón|o sea)\b|不对,|其实|实际上",
    _IGNORECASE,
)
CONCLUSION = re.compile(
    r"\W*(?:so|thus|therefore|hence|in (?:short|summary|conclusion)|overall|finally|final"
    r"|conclusion|to (?:conclude|sum up)|consequently|accordingly|answer|daher|also|folglich|somit"
    r"|fazit|donc|ainsi|en (?:résumé|conclusion)|por (?:lo )?tanto|así que|en (?:resumen"
    r"|conclusión)|entonces|所以|因此|综上|总之|答案)(?!\w{2})",
    _IGNORECASE,
)
#: Words that leave the answer open.
UNDECIDED = re.compile(
    r"\b(?:no (?:idea|clue|comment|answer|way (?:to|of)|information)|not (?:sure|certain|clear"
    r"|entirely|possible to|enough|applicable|specified|able to (?:determine|tell|say|confirm"
    r"|answer|verify|view|see (?:the |any |an? )?"
    r"(?:image|picture|photo)s?))|unsure|uncertain|unclear|unknown|undetermined|indeterminate"
    r"|inconclusive|ambiguous|n/a|(?:hard|difficult|impossible|tough) to|depends|insufficient"
    r"|might|may (?:be|or|not|well)|could be|maybe|perhaps|possibly|whether|(?:cannot|can't"
    r"|can not|could not|couldn't) be (?:determined|confirmed|answered|said|verified)|(?:cannot"
    r"|can't|can not|could not|couldn't|am unable to|'m unable to|unable to)"
    r" (?:be (?:sure|certain)|tell|say|determine|confirm|answer|verify|judge|decide|help|assist"
    r"|provide|view|access|process|analy[sz]e|comment|really tell|make (?:it|that|this"
    r"|anything) out|definitively|fully|see (?:(?:the |this |any |your |an |actual )*(?:image"
    r"|picture|photo)s?(?! of)|clearly|if|well))|(?:do not|don't|did not|didn't|cannot"
    r"|can't) (?:know|understand|have (?:enough|access|the ability)|see (?:the|an?|any"
    r"|your) (?:image|picture|photo)s?\b)|no (?:image|picture|photo) (?:was|is|has|provided"
    r"|attached)|unsicher|unklar|vielleicht|möglicherweise|weiß (?:ich )?(?:es )?nicht"
    r"|nicht (?:sicher|klar)|schwer zu sagen|das kann ich (?:so )?nicht (?:sagen|erkennen"
    r"|beurteilen|bestimmen)|kann (?:ich )?(?:das |es )?nicht (?:sagen|beurteilen|bestimmen"
    r"|erkennen, ob)|peut-être|sais pas|pas (?:sûre?|certaine?|clair|possible)|difficile"
    r"|impossible|incertain|quizás?|tal vez|no (?:lo )?sé|no estoy segur[oa]|no (?:está|es) claro"
    r"|difícil|imposible|no se puede (?:determinar|saber|decir)|no puedo (?:determinar|saber|decir"
    r"|confirmar|ayudar))\b|不确定|无法|不能(?:确定|判断)|难以|不知道|不清楚|看不清|也许|或许"
    r"|说不准|不好说|抱歉",
    _IGNORECASE,
)
NEGATION = re.compile(
    r"\b(?:not|no|never|cannot|nothing|none|neither|nor|nowhere|nobody|without|absent|absence"
    r"|lacks?|lacking|devoid|missing|invisible|unable|fails? to|failed to|free of|zero|cant|dont"
    r"|isnt|arent|doesnt|hardly|false|incorrect|untrue|nicht|keine?|keine[nmrs]|nichts|niemand"
    r"|weder|ohne|nirgends|fehlt|fehlen|pas|aucune?|rien|jamais|ni|(?:ne \w+|n'y a"
    r"|n'est là) personne|personne n[e']|nulle part|sans|absente?s?|ningun[oa]s?|ningún|nada|nadie"
    r"|tampoco|sin|ausentes?|carece|nunca)\b|n't\b",
    _IGNORECASE,
)
#: Words after which a clause says something else about what it named.
ASIDE = re.compile(
    r"(?<=\w)(?:(?<!\bis)(?<!\bare) without|,? (?:with|wearing|who|whose|because|since|although"
    r"|though|even though|despite|while|whereas|as (?:it|there|the)|rather than|instead of"
    r"|other than|besides|apart from|due to|if|(?:that|which) (?:is|are|was|were|has|have|does|do"
    r"|can|could|ca|appears?|seems?)(?:n't|not)?|mit|(?<!ist )ohne|weil|obwohl|während|avec|sans"
    r"|bien que|alors que|parce que|qui|con|sin|porque|aunque|mientras|que no)|, (?:not|nor|which"
    r"|das|der|die|da|que)|,? but (?:it|he|she|they)(?:'s|'re| is| are| does| do| has| have| was"
    r"| were)?(?: not|n't)"
    r"(?! (?:an?|the|in|there|present|visible)))\b.*",
    _IGNORECASE | re.DOTALL,
)
#: Words for something that is there or can be seen.
PRESENCE = re.compile(
    r"\b(?:there(?:'s|'re|(?: \w+ly| indeed| also)* (?:is|are|was|were|exists?|does appear"
    r"|(?:appears?|seems?) to be))|(?:i|we|you|one)(?: (?:can|could|do|did"
    r"|am able to))?(?: (?:clearly|definitely|indeed|certainly|easily|also|just))* (?:see|spot"
    r"|notice|observe|detect|identify|find|found|recogni[sz]e|make out|discern)|(?:is|are|was|were"
    r"|be|being)(?: (?:clearly|definitely|indeed|partially|partly|easily|also|plainly"
    r"|certainly))* (?:visible|present|there|shown|seen|depicted|detected|located|featured|found"
    r"|included|in (?:this|the) (?:image|picture|photo|photograph|scene))|\w+ (?:present|visible"
    r"|detected)(?=\W*$)|can (?:clearly |easily |indeed )?be (?:seen|found|spotted|observed)"
    r"|do(?:es)? (?:indeed )?(?:contain|show|include|have|feature|depict|appear|exist|look|seem)"
    r"|(?:is|are|does|do|has|have) indeed|(?:image|picture|photo|photograph|scene)(?: clearly"
    r"| indeed)? (?:contains|includes|has)|it (?:contains|includes)|it (?:appears|seems"
    r"|looks like)(?: that)? (?:there|so)|appears? (?:in|on|at|near|behind)|the presence of"
    r"|es gibt|gibt es|ich (?:sehe|erkenne|kann)|man (?:sieht|kann|erkennt)|(?:ist"
    r"|sind)(?: [\w-]{1,20}){0,6} (?:zu sehen|zu erkennen|sichtbar|vorhanden|abgebildet)"
    r"|befinde[nt] sich|(?:zeigt|enthält)(?= (?:eine?n?|tatsächlich|deutlich)\b)|il y (?:en )?a"
    r"|je (?:vois|peux voir|distingue)|on (?:voit|peut voir|distingue|aperçoit)|(?:est"
    r"|sont) (?:bien |clairement )?(?:visibles?|présente?s?)|l'image contient|se trouve|hay"
    r"|se (?:ve|ven|observan?|aprecian?)|aparecen?|veo|puedo ver|podemos ver"
    r"|está(?:n)? (?:presentes?|visibles?)|existen?|es visible|la imagen contiene)\b",
    _IGNORECASE,
)
#: A picture's caption, which is an answer only if it is the whole text.
CAPTION = re.compile(
    r"\b(?:image|picture|photo|photograph|scene|it|bild|imagen)(?: clearly| indeed)? "
    r"(?:shows|depicts|displays|zeigt|montre|muestra)\b",
    _IGNORECASE,
)
#: Negates something else: "no other animals".
OTHER_THINGS = re.compile(
    r"\b(?:no|any|keine?n?|pas d'|aucune?|ningún|ninguna) ?(?:other|further|additional|more"
    r"|weiteren?|anderen?|autres?|otr[oa]s?)\b|\belse\b",
    _IGNORECASE,
)
CONTRAST = re.compile(
    r"\b(?:but|however|yet|aber|jedoch|mais|pero|sin embargo)\b|但是?|不过|然而", _IGNORECASE
)

#: Negates something besides what is there: "a cat and no dog".
OTHER_NEGATION = re.compile(r"(?:,|,? and|,? with) no(?:t)? (?:an? )?[\w ]+", _IGNORECASE)
NONE_FOUND = re.compile(
    r"\b(?:but|however|yet) (?:there (?:is|are|was|were) (?:none|nothing)|(?:i"
    r"|we) (?:\w+ )?(?:\w+n't|not|cannot)"
    r" (?:see|find|spot|locate) (?:it|one|any|them))",
    _IGNORECASE,
)
#: Words that deny the thing named after them.
DENIAL_PREFIX = r"\b(?:no|not|rather than|instead of|without|isn't|aren't) (?:an?|the|any)? ?"

CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: Words that may come before a Chinese clause's verdict.
CHINESE_LEAD_IN = re.compile(
    r"(?:嗯|哦|好的|我(?:认为|觉得|想)?|应该|当然|确实|但是?|不过|答案(?:是|为)?|所以|因此"
    r"|综上(?:所述)?|总之|根据[^,]{0,16},|从[^,]{0,12}(?:来看|可以看出|看),?|(?:在)?(?:这|该"
    r"|此)?(?:张|幅|个)?(?:图片|图像|照片|图|画面|影像)(?:中|里|上|内)?(?:并|也)?|[,:\s\"“”]){1,8}"
)
CHINESE_YES = re.compile(
    r"是(?!否)|对(?!不)|没错|不错|正确|有(?!没有)|存在|可以|能|看[到见]|肯定|真|属实|可见|出现"
    r"|的确|包含|显示有|不是没有"
)
CHINESE_NO = re.compile(
    r"不(?!错|仅|只|光|过|是没)|没(?!错|问题)|沒|無|无(?!疑|论)|否|未|错|錯|假|并[没不无未]"
    r"|並[沒不無]|非"
)
CHINESE_NEGATION = re.compile(
    r"没有|沒有|并[无未]|不(?:存在|是(?!没)|在|包含|能看)|看不[到见]|未|没(?!错|问题)|沒|無"
    r"|无(?!疑|论)"
)
CHINESE_PRESENCE = re.compile(r"有|存在|看[到见]|可见|出现|包含")

#: Other names of objects in POPE's questions: irregular plurals, and kinds of people.
SYNONYMS = {
    "person": "people|(?:wo)?m[ae]n|boys?|girls?|child(?:ren)?|kids?|lad(?:y|ies)|guys?|players?",
    "knife": "knives",
    "mouse": "mice",
    "sheep": "lambs?",
    "tv": "televisions?",
    "cell phone": "(?:mobile |smart)?phones?",
    "couch": "sofas?",
    "refrigerator": "fridges?",
    "airplane": "(?:aero)?planes?",
    "bicycle": "bikes?",
    "motorcycle": "motorbikes?|bikes?",
    "cow": "cattle",
    "dog": "pupp(?:y|ies)",
    "cat": "kittens?",
    "donut": "doughnuts?",
    "potted plant": "plants?",
    "dining table": "tables?",
}
