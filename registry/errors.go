package registry

import (
	"errors"
	"fmt"

	"github.com/assay-dev/assay/store"
)

// What the registry answers when it does not do what it was asked.
// Transports turn these into codes, each in one table. Authorization errors
// are [access.ErrDenied] and [access.ErrUnauthenticated].
var (
	ErrNameInvalid         = errors.New("repository name is invalid")
	ErrNameUnknown         = errors.New("repository is unknown")
	ErrTagInvalid          = errors.New("tag is invalid")
	ErrTagImmutable        = errors.New("release tag is write-once")
	ErrManifestInvalid     = errors.New("manifest is invalid")
	ErrManifestTooLarge    = errors.New("manifest is too large")
	ErrManifestUnknown     = errors.New("manifest is unknown")
	ErrManifestBlobUnknown = errors.New("manifest names content that is not in this repository")
	ErrManifestHeld        = errors.New("manifest is held")
	ErrBlobUnknown         = errors.New("blob is unknown")
	ErrBlobInUse           = errors.New("blob is in use")
	ErrUploadUnknown       = errors.New("upload is unknown")
	ErrUploadInvalid       = errors.New("upload is invalid")
	ErrRangeInvalid        = errors.New("range does not continue the upload")
	ErrDigestInvalid       = errors.New("digest is invalid")
	ErrDigestMismatch      = errors.New("content does not have the digest it was sent under")
	ErrSizeInvalid         = errors.New("content does not have the size it was sent under")
	ErrDocumentInvalid     = errors.New("document is invalid")
	ErrUnknown             = errors.New("unknown")
	ErrClosed              = errors.New("registry is shutting down")

	// ErrNoSpace says that the disk is too full for any write.
	ErrNoSpace = store.ErrNoSpace
)

func isNoSpace(err error) bool { return errors.Is(err, ErrNoSpace) }

// MissingBlobs is the detail of an error that is ErrManifestBlobUnknown.
type MissingBlobs struct {
	Digests []string
}

func (e *MissingBlobs) Error() string {
	return fmt.Sprintf("%v: %v", ErrManifestBlobUnknown, e.Digests)
}

// Is makes errors.Is(e, ErrManifestBlobUnknown) true.
func (e *MissingBlobs) Is(target error) bool { return target == ErrManifestBlobUnknown }
