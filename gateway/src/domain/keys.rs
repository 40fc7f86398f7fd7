//! Access keys.
use super::{DomainError, Gateway, KeyChange, NewKey};
use hayloft_common::schema::{KeyId, KeyRow};
use std::sync::Arc;

impl Gateway {
    /// A live, unexpired key, from the cache or read; a missing one is always read anew.
    pub async fn key(&self, _id: &KeyId) -> Result<Arc<KeyRow>, DomainError> {
        unimplemented!()
    }
    /// As stored, also deleted-looking or expired ones (`NoSuchKeyId` when deleted), read by quorum.
    pub async fn key_info(&self, _id: &KeyId) -> Result<KeyRow, DomainError> {
        unimplemented!()
    }
    pub async fn list_keys(&self) -> Result<Vec<KeyRow>, DomainError> {
        unimplemented!()
    }
    pub async fn create_key(&self, _new: NewKey) -> Result<KeyRow, DomainError> {
        unimplemented!()
    }
    /// Imports a key made elsewhere; `KeyExists` if its id is or was used.
    pub async fn import_key(&self, _id: KeyId, _secret: String, _new: NewKey) -> Result<KeyRow, DomainError> {
        unimplemented!()
    }
    pub async fn update_key(&self, _id: &KeyId, _change: KeyChange) -> Result<KeyRow, DomainError> {
        unimplemented!()
    }
    pub async fn delete_key(&self, _id: &KeyId) -> Result<(), DomainError> {
        unimplemented!()
    }
}
