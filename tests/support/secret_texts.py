"""Texts with a secret in each notation, as ``text % secret``; ``{0}`` in the secret is the canary.

JSON is RFC 8259, YAML is YAML 1.2.2 (sections 6.1, 7.3.3 and 8.1), XML is XML 1.0, HTML is the HTML Standard (13.1).
"""

from __future__ import annotations

TEXTS = [
    # XML and HTML
    ("<a><password>%s</password><b>1</b></a>", "{0} {0}"),
    ('<ns:password type="x">%s</ns:password>', "{0}"),
    ("<token>\n  %s</token>", "<![CDATA[{0}]]>"),
    ("<credentials>%s</credentials><b>1</b>", "<user>{0}</user><pin>{0}</pin>"),
    ("<a>1</a><password>%s", "{0}"),  # cut
    ('<input type="hidden" name="token" value="%s">', "{0} {0}"),
    ("<input value='%s' name='user[password]'/>", "{0}"),
    ("<input name=token type=hidden value=%s>", "{0}"),
    ('<input value="%s" id="csrf-token"', "{0}>{0}"),
    ('<meta name="csrf-token" content="%s" />', "{0}"),
    ('<user password="%s" a="b">', "{0} {0}"),
    ('<property name="password">%s</property>', "{0}"),  # Spring
    ('<setting name="password">%s</setting>', "<a/><value>{0}</value>"),  # .NET
    ("<dict><key>password</key>\n<string>%s</string></dict>", "{0}"),  # a property list of Apple
    ("<property><name>a.password</name><value>%s</value></property>", "{0}"),  # Hadoop
    # a line break between the name, the colon and the value
    ('{"token"\n  : "%s", "a": 1}', "{0} {0}"),
    ('{"token":\n  "%s", "a": 1}', "{0} {0}"),
    ('b\'{"token"\\n : \\n "%s", "a": 1}\'', "{0} {0}"),
    ("token\n  : %s", "{0}"),
    # blocks, lists, maps and folded lines of YAML
    ("a: 1\npassword: %s\nuser: me", "|\n  {0}\n  {0}"),
    ("a:\n  - password: %s\n    user: me", ">-\n        {0}\n\n      {0}"),
    ("b'a: 1\\npassword: %s\\nuser: me'", "|2-\\n    {0}\\n  {0}"),
    ("a: 1\r\npassword: %s\r\nuser: me", "# comment\r\n  {0}"),
    ("a: 1\ntoken:\n  %s\nuser: me", 'a: "{0}"\n  b:\n    - {0}'),
    ("a: 1\ntoken:\n%s\nuser: me", "- {0}\n- {0}"),
    ("not expected: token:\n  %s\nuser: me", "a: {0}\n  b: {0}"),
    ("not expected: password: %s\nuser: me", "|\n  {0}"),
    ("a: 1\npassword: %s\nuser: me", "{0}\n  {0}"),
    ("b'a: 1\\ntoken:\\n  %s'", 'a: "{0}"\\n  b: {0}'),
    # objects and lists under a secret name
    ('{"token": %s, "c": 1}', '{{"a": "{0}", "b": "{0}"}}'),
    ('{"token": %s, "c": 1}', '{{"a": {{"x": "}}"}}, "b": "{0}"}}'),
    ('{"token": %s, "c": 1}', '[["{0}"], "]\\"]", "{0}"]'),
    ('{\\"token\\": %s, \\"c\\": 1}', '{{\\"a\\": {{\\"b\\": 1}}, \\"c\\": \\"{0}\\"}}'),
    ("{'token': %s, 'd': 1}", "{{'a': [b'b]'], 'c': '{0}'}}"),
    ("{'token': %s, 'd': 1}", "(1, ({0}), [')'], {0})"),
    ("{'token': %s, 'd': 1}", "[(({0}, )]"),  # in disorder
    ("{'token': %s, 'd': 1}", "[}}({0}]"),
    ('{"token": %s', '{{"a": {{"b": 1}}, "c": "{0}'),  # cut
    # several words
    ("password: %s", "correct horse {0}"),
    ("invalid password: %s, user me", "correct horse {0}"),
    ("the password: %s; user: me", "correct horse {0}"),
    ("error: password: %s. Try again", "correct horse {0}"),
    ("a password = %s\nb", "correct horse {0}"),
    ("(password: %s) x", "correct horse {0}"),
    ("it's client_secret: %s user: me", "it's a.b,c-d {0}"),
    ("no password: %s user=me", "correct horse {0}"),
    ("a: 'password: %s' is wrong", "correct horse {0}"),
    ("a\npassword=%s\nb=c", "correct horse {0}"),
]
