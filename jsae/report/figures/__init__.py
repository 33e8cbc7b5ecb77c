"""Charts as inline SVG, made of strings: no plotting library, no script, sharp at any size, printable.

Colours are CSS classes (s0, s1, ... of the Okabe-Ito palette, one set for light and one for dark pages);
series differ in dash or shape as well as in colour. All text is escaped here.
"""
