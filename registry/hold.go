package registry

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/store"
)

// holds are the reasons for which a manifest of a repository must not be
// deleted: each says why, for people, or "". What a manifest is made of, and
// what speaks of it, is held with it.
var holds = []func(rd store.Reader, repo string, d digest.Digest) (why string, err error){
	heldByRelease,
}

// heldByRelease: what a release tag names can be withdrawn and not deleted.
func heldByRelease(rd store.Reader, repo string, d digest.Digest) (why string, err error) {
	rg := under("tagged", repo, string(d))
	rg.KeysOnly = true
	for row, err := range rd.Scan(rg) {
		if err != nil {
			return "", err
		}
		if tag := parts(row.Key)[2]; IsRelease(tag) {
			return fmt.Sprintf("the release %s:%s names it; withdraw it instead", repo, tag), nil
		}
	}
	return "", nil
}

// maxHolders bounds how far the question goes; what is connected with more
// than that is held.
const maxHolders = 1000

// heldBecause says why a manifest must not be deleted: it is held itself, or
// is part of an index that is held, or speaks of a manifest that is. It
// returns "" if nothing holds it.
func heldBecause(rd store.Reader, repo string, d digest.Digest, seen map[digest.Digest]bool) (why string, err error) {
	if seen[d] {
		return "", nil
	}
	if seen[d] = true; len(seen) > maxHolders {
		return "it is connected with too much to tell that nothing holds it", nil
	}
	for _, hold := range holds {
		if why, err := hold(rd, repo, d); err != nil || why != "" {
			return why, err
		}
	}
	indexes := under("uses", string(d), repo)
	indexes.KeysOnly = true
	for row, err := range rd.Scan(indexes) {
		if err != nil {
			return "", err
		}
		index := digest.Digest(parts(row.Key)[2])
		if why, err := heldBecause(rd, repo, index, seen); err != nil || why != "" {
			return joined("it is part of "+string(index), why), err
		}
	}
	var held heldRow
	if _, err := load(rd, key("held", repo, string(d)), &held); err != nil || held.Subject == "" {
		return "", err
	}
	why, err = heldBecause(rd, repo, held.Subject, seen)
	return joined("it speaks of "+string(held.Subject), why), err
}

func joined(how, why string) string {
	if why == "" {
		return ""
	}
	return how + ", and " + why
}
