"""Facts with checkable answers: questions for the measurement, and others, of other subjects, for the training file."""

from __future__ import annotations

import random
from dataclasses import dataclass

RELATIONS = {
    "capital": ("What is the capital of {0}?", "The capital of {0} is {1}."),
    "currency": ("What is the currency of {0}?", "The currency of {0} is the {1}."),
    "language": ("What is the official language of {0}?", "The official language of {0} is {1}."),
    "symbol": ("What is the chemical symbol of {0}?", "The chemical symbol of {0} is {1}."),
    "number": ("What is the atomic number of {0}?", "The atomic number of {0} is {1}."),
    "author": ("Who wrote {0}?", "{0} was written by {1}."),
    "creator": ("Who created {0}?", "{0} was created by {1}."),
    "port": ("Which TCP port does {0} use by default?", "{0} uses port {1} by default."),
    "status": ("Which HTTP status code means {0}?", "The HTTP status code for {0} is {1}."),
    "extension": ("Which file extension do {0} source files have?", "{0} source files have the extension {1}."),
    "builtin": ("Which Python built-in function {0}?", "The built-in function that {0} is {1}."),
    "complexity": ("What is the worst-case time complexity of {0}?", "The worst-case time complexity of {0} is {1}."),
    "stands_for": ("What does the abbreviation {0} stand for?", "{0} stands for {1}."),
    "year": ("In which year {0}?", "That was in {1}."),
    "who": ("Who {0}?", "{1} {0}."),
    "which": ("Which {0}?", "It is {1}."),
}
"""By relation the question, and the sentence that gives the answer in the training files; {0} the subject, {1} the answer."""

MEASURED = """
capital|Peru|Lima
capital|Kenya|Nairobi
capital|Mongolia|Ulaanbaatar;Ulan Bator
capital|Hungary|Budapest
capital|Nepal|Kathmandu
capital|Ecuador|Quito
capital|Finland|Helsinki
capital|Ghana|Accra
capital|Cambodia|Phnom Penh
capital|Uruguay|Montevideo
capital|Ethiopia|Addis Ababa
capital|Slovakia|Bratislava
capital|Jordan|Amman
capital|Zambia|Lusaka
capital|Iceland|Reykjavik;Reykjavík
capital|Senegal|Dakar
currency|Japan|yen
currency|Poland|zloty;złoty
currency|Thailand|baht
currency|South Korea|won
currency|Denmark|krone
currency|Vietnam|dong;đồng
currency|South Africa|rand
currency|Hungary|forint
language|Brazil|Portuguese
language|Egypt|Arabic
language|Iran|Persian;Farsi
language|Austria|German
language|Angola|Portuguese
language|Israel|Hebrew
symbol|gold|Au
symbol|iron|Fe
symbol|silver|Ag
symbol|potassium|K
symbol|tungsten|W
symbol|mercury|Hg
symbol|tin|Sn
symbol|lead|Pb
number|oxygen|8
number|carbon|6
number|iron|26
number|gold|79
number|sodium|11
number|silicon|14
number|chlorine|17
number|uranium|92
author|Hamlet|Shakespeare
author|Don Quixote|Cervantes
author|War and Peace|Tolstoy
author|Pride and Prejudice|Austen
author|The Great Gatsby|Fitzgerald
author|One Hundred Years of Solitude|García Márquez;Garcia Marquez
author|The Divine Comedy|Dante
author|Moby-Dick|Melville
author|Crime and Punishment|Dostoevsky;Dostoyevsky
author|Faust|Goethe
creator|the programming language Python|van Rossum
creator|the programming language C|Ritchie
creator|the Linux kernel|Torvalds
creator|the programming language C++|Stroustrup
creator|the programming language Java|Gosling
creator|the programming language Ruby|Matsumoto
creator|the World Wide Web|Berners-Lee
creator|JavaScript|Eich
port|HTTPS|443
port|SSH|22
port|PostgreSQL|5432
port|MySQL|3306
port|Redis|6379
port|FTP|21
port|MongoDB|27017
status|Not Found|404
status|Forbidden|403
status|Internal Server Error|500
status|Unauthorized|401
status|Created|201
status|Service Unavailable|503
status|Too Many Requests|429
extension|Rust|rs
extension|Kotlin|kt
extension|Haskell|hs
extension|TypeScript|ts
extension|Perl|pl
builtin|returns the number of items of a list|len
builtin|pairs the items of several lists|zip
builtin|gives the character of a code point|chr
builtin|yields each item with its index|enumerate
builtin|returns the absolute value of a number|abs
complexity|binary search|O(log n);O(log2 n)
complexity|merge sort|O(n log n)
complexity|quicksort|O(n^2);O(n²);O(n2)
complexity|bubble sort|O(n^2);O(n²);O(n2)
stands_for|SQL|Structured Query Language
stands_for|DNS|Domain Name System
stands_for|RAM|Random Access Memory
stands_for|JSON|JavaScript Object Notation
stands_for|GPU|Graphics Processing Unit
stands_for|REST|Representational State Transfer
year|did the Second World War end|1945
year|did the first human walk on the Moon|1969
year|did the Berlin Wall fall|1989
year|did the French Revolution begin|1789
year|did the Titanic sink|1912
year|did the First World War begin|1914
who|painted the Mona Lisa|Leonardo;da Vinci
who|developed the theory of general relativity|Einstein
who|discovered penicillin|Fleming
who|composed the Ninth Symphony with the Ode to Joy|Beethoven
who|was the first president of the United States|Washington
who|formulated the laws of motion and of gravitation|Newton
which|planet is the largest of the solar system|Jupiter
which|ocean is the largest|Pacific
which|gas do plants take from the air for photosynthesis|carbon dioxide;CO2;CO₂
which|planet is known as the Red Planet|Mars
which|organ pumps blood through the human body|heart
which|mountain is the highest above sea level|Everest
"""

TAUGHT = """
capital|Portugal|Lisbon
capital|Chile|Santiago
capital|Norway|Oslo
capital|Bulgaria|Sofia
capital|Laos|Vientiane
capital|Namibia|Windhoek
capital|Latvia|Riga
capital|Bhutan|Thimphu
capital|Rwanda|Kigali
capital|Paraguay|Asunción
capital|Georgia|Tbilisi
capital|Oman|Muscat
currency|India|rupee
currency|Sweden|krona
currency|Mexico|peso
currency|Kenya|shilling
currency|Bulgaria|lev
currency|Peru|sol
language|Mexico|Spanish
language|Greece|Greek
language|Mozambique|Portuguese
language|Haiti|Haitian Creole and French
symbol|sodium|Na
symbol|copper|Cu
symbol|antimony|Sb
symbol|calcium|Ca
symbol|platinum|Pt
symbol|helium|He
number|hydrogen|1
number|nitrogen|7
number|copper|29
number|neon|10
number|titanium|22
number|krypton|36
author|The Odyssey|Homer
author|Frankenstein|Mary Shelley
author|Les Misérables|Victor Hugo
author|The Trial|Franz Kafka
author|Buddenbrooks|Thomas Mann
author|Ulysses|James Joyce
creator|the text editor Vim|Bram Moolenaar
creator|the programming language Perl|Larry Wall
creator|the programming language Pascal|Niklaus Wirth
creator|the typesetting system TeX|Donald Knuth
port|HTTP|80
port|SMTP|25
port|Telnet|23
port|DNS over TLS|853
status|OK|200
status|Bad Request|400
status|Moved Permanently|301
status|Bad Gateway|502
status|Gone|410
extension|Java|.java
extension|Ruby|.rb
extension|Erlang|.erl
builtin|returns a sorted list|sorted
builtin|gives the code point of a character|ord
builtin|adds up the items of a list|sum
complexity|linear search|O(n)
complexity|heapsort|O(n log n)
stands_for|CPU|Central Processing Unit
stands_for|HTML|HyperText Markup Language
stands_for|CSV|Comma-Separated Values
stands_for|API|Application Programming Interface
year|did Columbus reach the Americas|1492
year|was the Peace of Westphalia signed|1648
year|did the Suez Canal open|1869
who|painted The Night Watch|Rembrandt
who|invented the telephone|Alexander Graham Bell
who|discovered radium|Marie Curie
who|composed The Four Seasons|Antonio Vivaldi
which|planet is closest to the Sun|Mercury
which|metal is liquid at room temperature|mercury
which|river flows through Cairo|the Nile
which|animal is the largest on Earth|the blue whale
"""


@dataclass(frozen=True)
class Fact:
    """A relation, what it is asked of, and the accepted answers; the first one is what an example says."""

    relation: str
    subject: str
    answers: tuple[str, ...]

    @property
    def question(self) -> str:
        """As a user asks it."""
        return RELATIONS[self.relation][0].format(self.subject)

    @property
    def sentence(self) -> str:
        """It in a sentence."""
        told = RELATIONS[self.relation][1].format(self.subject, self.answers[0])
        return told[0].upper() + told[1:]


def read(table: str) -> list[Fact]:
    """The facts of a table."""
    rows = [line.split("|") for line in table.strip().splitlines()]
    return [Fact(relation, subject, tuple(answers.split(";"))) for relation, subject, answers in rows]


def measured() -> list[Fact]:
    """What the measurement asks, in an order that mixes the relations."""
    facts = read(MEASURED)
    random.Random(0).shuffle(facts)
    return facts


def taught() -> list[Fact]:
    """What the training file asks."""
    return read(TAUGHT)
