package registry

import (
	"github.com/assay-dev/assay/store"
)

// stateGroup is how many states of a hash share a row.
const stateGroup = 256

// putStates writes the states of a blob's or an upload's hash, as far as they
// changed: those before from, in bytes, have rows already.
func putStates(tx *txn, family, owner string, states []byte, from int) {
	// One row is as long for either algorithm: what counts is that it is full.
	const row = stateGroup * 32
	for g := from / row; g*row < len(states); g++ {
		tx.set(key(family, owner, number32(g)), states[g*row:min(len(states), (g+1)*row)])
	}
}

// loadStates reads them. There may be more than belong to the content, of a
// session that went back.
func loadStates(rd store.Reader, family, owner string) (states []byte, err error) {
	for row, err := range rd.Scan(under(family, owner)) {
		if err != nil {
			return nil, err
		}
		states = append(states, row.Value...)
	}
	return states, nil
}

func dropStates(tx *txn, family, owner string) error {
	rg := under(family, owner)
	rg.KeysOnly = true
	for row, err := range tx.Scan(rg) {
		if err != nil {
			return err
		}
		tx.delete(append([]byte(nil), row.Key...))
	}
	return nil
}
