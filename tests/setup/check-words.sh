#!/usr/bin/env bash
# Words that read like a translation, or say nothing precise, in what users read: the README, the pages, and the notes for those who
# join. Prints each with its place and fails if there is one.
set -euo pipefail
cd "$(dirname "$0")/../.."

words='nobody|somebody|whoever|tells?|told|go(es|ing)? on with|gone on with|mend(s|ed|ing)?|begun anew|given up|passed over'
words+='|a repository beside|goes away|if it likes|stands? in no|hears?|the same of|shall'
if grep -nEiw "$words" README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md docs/*.md; then
    echo "words: use the field's nouns, and say who does what" >&2
    exit 1
fi
echo "words: none to avoid in the pages"
