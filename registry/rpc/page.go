package rpc

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
)

// Sizes of pages. Clients of gRPC take messages of at most 4 MiB unless told
// otherwise, so a page ends early where it would come near that.
const (
	defaultPage  = 100
	maxPage      = 1000
	maxPageBytes = 2 << 20
)

// pageSize is how many elements a page has at most.
func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, fmt.Errorf("%w: page_size is %d", errRequest, asked)
	case asked == 0:
		return defaultPage, nil
	}
	return min(int(asked), maxPage), nil
}

// A pager is a request for a page.
type pager interface {
	GetPageSize() int32
	GetPageToken() string
}

// page returns the elements that belong on a page, and the token of the next
// one. A token is the id of the last element of the page before.
func page[T any, M proto.Message](q pager, all []T, id func(T) string, convert func(T) (M, error)) (list []M, next string, err error) {
	n, err := pageSize(q.GetPageSize())
	if err != nil {
		return nil, "", err
	}
	if token := q.GetPageToken(); token != "" {
		i := slices.IndexFunc(all, func(x T) bool { return id(x) == token })
		if i < 0 {
			return nil, "", fmt.Errorf("%w: page_token %q is not of this list; begin again without it", errRequest, token)
		}
		all = all[i+1:]
	}
	size := 0
	for i, x := range all {
		m, err := convert(x)
		if err != nil {
			return nil, "", err
		}
		size += proto.Size(m)
		if i == n || i > 0 && size > maxPageBytes {
			return list, id(all[i-1]), nil
		}
		list = append(list, m)
	}
	return list, "", nil
}
