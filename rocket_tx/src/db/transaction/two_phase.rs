//! The transaction as a participant or as the decider of an atomic commit over several databases.

use super::{State, Transaction};
use crate::db::{CommitError, Decided, Decision, Durability, GlobalId, Session};

impl<S: Session> Transaction<S> {
    /// As [`prepare`](Self::prepare), for one of several databases. Afterwards
    /// [`may_have_written`](Self::may_have_written) is exact where the database can tell, or `true`
    /// after [`mark_written`](Self::mark_written).
    pub(crate) async fn prepare_among_several(&mut self) -> Result<(), CommitError> {
        self.start_step()?;
        let result = match self.has_written {
            true => self.session.prepare().await,
            false => self.session.prepare_among_several().await,
        };
        self.state = State::Open;
        result
    }

    /// Records that the transaction has written. If it has not, it is treated as if it had.
    pub(crate) fn mark_written(&mut self) {
        self.has_written = true;
    }

    /// Returns `false` if the transaction is known to have written nothing.
    pub(crate) fn may_have_written(&self) -> bool {
        self.session.may_have_written()
    }

    /// Prepares the transaction under the name `id`. It is then committed or rolled back by
    /// [`finish`](Self::finish), or by any other session.
    ///
    /// # Errors
    ///
    /// Any [`CommitError`]. After [`CommitError::Lost`] the transaction may be prepared. It cannot be
    /// committed without a decision.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the transaction may be prepared.
    pub(crate) async fn prepare_transaction(&mut self, id: &GlobalId) -> Result<(), CommitError> {
        // Closing the session rolls back what is not prepared yet.
        self.state = State::Closing;
        if !self.has_its_session() {
            return Err(CommitError::Ended { undone: false });
        }
        let result = self.session.prepare_transaction(id).await;
        self.state = match &result {
            Ok(()) => State::Prepared(*id),
            Err(CommitError::Lost(_)) => State::Closing,
            Err(_) => State::Open,
        };
        result
    }

    /// Commits together with the decision to commit the prepared transactions of other databases.
    ///
    /// # Errors
    ///
    /// As [`commit_without_waiting`](Self::commit_without_waiting), and
    /// [`CommitError::DecidedToAbort`].
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the decision is unknown until the decider is queried.
    pub(crate) async fn decide(&mut self, decision: &Decision) -> Result<Durability, CommitError> {
        self.start_step()?;
        let result = self.session.decide(decision).await;
        self.state = match &result {
            Ok(_) => State::Ended,
            Err(CommitError::Unknown(_)) => State::Closing,
            Err(_) => State::Open,
        };
        result
    }

    /// Returns the name under which the transaction is prepared.
    pub(crate) fn prepared(&self) -> Option<GlobalId> {
        match self.state {
            State::Prepared(id) => Some(id),
            _ => None,
        }
    }

    /// Commits or rolls back the prepared transaction.
    ///
    /// # Errors
    ///
    /// The transaction may still be prepared. Another session can finish it.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, the session is closed.
    pub(crate) async fn finish(&mut self, id: &GlobalId, decided: Decided) -> sqlx::Result<()> {
        self.state = State::Closing;
        self.session.finish_prepared(id, decided).await?;
        self.state = State::Ended;
        Ok(())
    }
}
