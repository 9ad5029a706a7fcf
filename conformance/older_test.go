package conformance

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/assay-dev/assay/verify/attest"
)

// What a report of older criteria says, to the byte: whoever judges an old replay
// with a new program gets what was published.
func TestReportsOfOlderCriteriaStayTheSame(t *testing.T) {
	for version, want := range map[int]string{
		1: "ff16b66682f05a1d66be34b79650ab43ac48deb5b00b1c7cd008fa6cd5156fba",
		2: "cb193ebf76ff64fe4e77a9ecea66c360a201cb065d2af05808dcf3c4dc64ff47",
		3: "cb193ebf76ff64fe4e77a9ecea66c360a201cb065d2af05808dcf3c4dc64ff47",
	} {
		r := manyCases(t, 3000)
		r.Suite.Criteria.Version = version
		if version == 1 {
			r.Suite.Criteria.Noise, r.Suite.Criteria.Limits = nil, nil
		}
		for i := range r.Suite.Cases {
			r.Suite.Cases[i].Label = []string{"decline", "approve"}[i%2]
		}
		report := judged(t, r)
		raw, err := attest.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(raw)); got != want {
			t.Errorf("version %d: %s, and it was %s", version, got, want)
		}
	}
}
